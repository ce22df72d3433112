"""Encoders and vision models: inputs of several callers run as one batch. The scheduler is pure.

Imports runtime, text, admission, observability and what is below them.
"""
