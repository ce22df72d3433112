"""The preprocessing of a text or an image, with the settings as the library that defines them reads them.

`text` and `images` read the settings of a source into the manifest, and prove them on golden inputs. `samples` reads
files of sample inputs. These packages know nothing of graphs.
"""
