"""From the name that a user types to files on this machine. May import errors and precisions, and no torch."""
