"""What this machine, container or process may use: CPUs, memory, control groups. Imports nothing of the server."""
