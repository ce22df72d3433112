"""Resources of this process: CPUs and memory, within its control groups, listening addresses and standard files.

Imports server.errors alone.
"""
