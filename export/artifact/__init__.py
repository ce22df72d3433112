"""The artifact: its graphs, its directory, and looking into one. Imports parity and what is below it."""
