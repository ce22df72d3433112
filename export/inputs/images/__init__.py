"""Image processors, read by transformers, and timm's settings; golden images."""
