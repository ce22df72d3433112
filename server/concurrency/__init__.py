"""Tools for asyncio that know nothing of models: a weighted semaphore, work in threads, a stop signal.

Imports server.errors alone.
"""
