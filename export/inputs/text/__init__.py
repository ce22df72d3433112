"""Tokenizers, and the modules and settings of sentence-transformers, as their own libraries read them.

`tokenizer` reads a tokenizer, `characters` that of nanoGPT, `generation_settings` the tokens that begin and end a text.
`sentence_model` reads a model of sentence-transformers, by `text_settings`, `pooling`, `vector_layers` and
`cross_encoder`. `golden_texts` proves the tokenizer.
"""
