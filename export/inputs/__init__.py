"""What happens to a text or an image before the graph, as the library that defines it reads its settings.

`tokenizer`, `characters` (nanoGPT's), `pooling` (sentence-transformers'), `image_processor`, `processor_table`,
`timm_layout`: a source's files → the manifest's account of its input. `image_steps` carries that account out;
`golden_images` proves it on images that travel with the artifact. May import export.errors and export.files; knows
nothing of graphs.
"""
