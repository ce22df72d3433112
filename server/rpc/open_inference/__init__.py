"""The Open Inference Protocol, as KServe and Triton speak it: endpoints by task, tensors, metadata, streams."""
