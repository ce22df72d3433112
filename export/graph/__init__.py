"""From a model to an ONNX graph: recipes, the runtime's attention, tracing, fusing, rounding, running."""
