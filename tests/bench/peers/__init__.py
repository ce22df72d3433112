"""The peers: stand-alone programs, each in a process, some with a Python environment of their own.

A module here imports the standard library, the peer's packages and `tests.bench.peers`, nothing else of ours.
"""
