"""The contracts between the packages, and with clients. `make protos` compiles *.proto; never edit *_pb2*.

affinity.proto        the typed gRPC service
open_inference.proto  messages of the Open Inference Protocol (KServe v2, Triton)
manifest.proto        the contents of an artifact directory
artifact.py           file names, golden keys and tolerances of an artifact
"""
