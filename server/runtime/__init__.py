"""ONNX Runtime: providers, sessions, and the golden check of the session that will serve.

Imports server.artifact, config, host and errors; knows no tasks and no batches.
"""
