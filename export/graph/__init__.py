"""From a model to an ONNX graph: recipes, fused attention, tracing, fusing, quantising, running."""
