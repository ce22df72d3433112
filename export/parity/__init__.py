"""The proof: inputs to try a graph on, the comparison with PyTorch, scores on held-out and own inputs.

Imports graph, inputs and what is below them.
"""
