"""What an operator sees: events and totals, Prometheus metrics, Triton's names for them, HTTP, logs.

Imports server.status, server.admission and server.errors.
"""
