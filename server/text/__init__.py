"""Encoding and decoding of text, and the golden texts. Imports admission, concurrency, artifact and errors."""
