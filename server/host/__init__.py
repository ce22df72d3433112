"""The CPUs and memory available to this process, with control groups. Imports no other package of the server."""
