"""The services on the server's port, by the names under which clients call them."""

OPEN_INFERENCE = "inference.GRPCInferenceService"
TYPED = "affinity.v1.Affinity"
HEALTH = "grpc.health.v1.Health"
