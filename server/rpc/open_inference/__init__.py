"""The Open Inference Protocol of KServe and Triton: endpoints of the tasks, tensors, metadata and streams."""
