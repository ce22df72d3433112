"""The artifact: its graphs, its directory, and its inspection. May import parity and the layers below it."""
