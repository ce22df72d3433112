"""What the machine gives this process: CPUs and memory, within its control groups, addresses and standard files.

Imports server.errors alone.
"""
