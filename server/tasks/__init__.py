"""What users ask for: fill-mask, classification, embeddings, text generation, and tensors as they are.

Imports batching, generation, text, images and what is below them; knows nothing of gRPC.
"""
