"""Benchmarks beside peers in the same run: `python -m tests.bench.encoders`, `….generation`."""
