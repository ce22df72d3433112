"""From the name that a user types to files on this machine. Imports nothing of models."""
