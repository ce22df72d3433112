"""The server: ONNX Runtime behind gRPC. Imports `protos` only; no torch, no onnx, no transformers.

The packages, from the top: rpc, repository, tasks, generation and batching, text and images, runtime, observability,
admission and concurrency, host and config. Each imports only packages below it (a contract of `make check`).
"""
