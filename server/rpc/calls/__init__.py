"""What every call passes through, whatever its service: token, rate, reading, writing, errors and metrics."""
