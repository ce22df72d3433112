"""Decoding of image files to pixels within limits of time and memory, and the golden images.

Imports concurrency, artifact and errors.
"""
