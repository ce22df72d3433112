"""Image preprocessing, as transformers or timm define it.

`processor` reads the image processor of a source, by the rules in `processor_table`, and `timm_layout` timm's settings.
`steps` runs the manifest's steps. `golden_images` proves them.
"""
