"""gRPC: the two services, interceptors, health and reflection. Imports repository and below."""
