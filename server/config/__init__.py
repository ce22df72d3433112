"""Settings: the dataclasses, their command line and environment, and which versions of a model are served.

Imports server.errors alone.
"""
