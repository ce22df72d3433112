"""The names of the gRPC services."""

OPEN_INFERENCE = "inference.GRPCInferenceService"
TYPED = "affinity.v1.Affinity"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
