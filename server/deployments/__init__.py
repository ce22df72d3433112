"""The server as deployments of Ray Serve: a replica of a model, the ingress before all models, and Ray's proxy.

Only server/ray_app.py imports Ray. These modules take what they need of it as arguments.
"""
