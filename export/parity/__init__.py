"""The proof: inputs to compare a graph on, the comparison with PyTorch, scores on held-out and the user's inputs.

May import graph, inputs and the layers below them.
"""
