"""What happens to a text or an image before the graph, as the library that defines it reads its settings.

`tokenizer`, `characters` (nanoGPT's), `pooling` (sentence-transformers'), `image_processor`: a source's files → the
manifest's account of its input. May import export.errors and export.files; knows nothing of graphs.
"""
