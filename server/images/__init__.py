"""Image files to pixels within bounds of time and memory, and the golden images.

Imports concurrency, artifact and errors.
"""
