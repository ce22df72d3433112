"""What we measure ourselves against: programs that stand alone, each in a process, perhaps with a Python of its own.

A module here imports the standard library, the peer's packages and `tests.bench.peers`, nothing else of ours.
"""
