"""What happens to a text or an image before the graph, as the library that defines it reads its settings.

`tokenizer`, `characters` (nanoGPT's), `image_processor`, `processor_table` and `timm_layout` make the manifest's
account of the input out of a source's files. `text_model` reads what sentence-transformers saves beside them, by way of
`text_settings`, `pooling`, `vector_layers` and `cross_encoder`. `image_steps` carries the account of images out;
`golden_texts` and `golden_images` prove both accounts on inputs that travel with the artifact. Knows nothing of graphs.
"""
