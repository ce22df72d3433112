"""The typed service, affinity.v1."""
