"""What happens to a text or an image before the graph, as the library that defines it reads its settings.

`text` and `images` read the settings of a source into the manifest, and prove them on golden inputs. `samples` reads
files of sample inputs. These packages know nothing of graphs.
"""
