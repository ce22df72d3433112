"""Monitoring: events and totals, Prometheus metrics, Triton's metric names, HTTP, logs.

Imports server.status, server.admission and server.errors.
"""
