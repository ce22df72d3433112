"""Speed, side by side with peers in the same run: `python -m tests.bench.encoders`, `….generation`."""
