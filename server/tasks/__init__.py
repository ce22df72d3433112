"""The tasks: fill-mask, classification, embeddings, text generation, and tensors in and out.

Imports batching, generation, text, images and what is below them; knows nothing of gRPC.
"""
