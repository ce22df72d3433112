"""Monitoring: events and totals, Prometheus metrics, Triton's metric names, HTTP, logs.

Imports server.status, server.admission, server.host and server.errors.
"""
