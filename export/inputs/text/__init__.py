"""Tokenizers, poolings and prompts, read by transformers or in the files of sentence-transformers."""
