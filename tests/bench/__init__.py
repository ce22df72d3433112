"""Benchmarks beside peers in the same run: `python -m tests.bench` runs those that have targets."""
