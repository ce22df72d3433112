"""The typed service, affinity.v1: one method for each task."""
