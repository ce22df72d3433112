"""Text to tokens and back, and the golden texts. Imports admission, concurrency, artifact and errors."""
