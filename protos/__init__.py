"""What the parts of Affinity say to each other and to the world. `make protos` compiles *.proto; never edit *_pb2*.

affinity.proto        the typed gRPC service
open_inference.proto  messages of the Open Inference Protocol (KServe v2, Triton)
manifest.proto        what an artifact directory contains
"""
