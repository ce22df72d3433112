"""Export: from a PyTorch model to an artifact, which has one ONNX graph for each kind of machine and its proof.

Read in the order in which data flows:

    sources      the name that the user typed → files on this machine; which files an export reads, and their digest
    inputs       the preprocessing of a text or an image, with the settings as the library that defines them reads them
    loading      a source → a recipe (the model with named inputs and outputs) and a manifest
    graph        a recipe → an ONNX graph: traced with the runtime's fused attention, fused, quantised, run
    parity       how far a graph is from PyTorch, on seeded inputs, on GPT's cache, on held-out and on the user's inputs
    artifact     one graph with its proof; the directory that the server reads; `inspect` and `verify`
    exporter     all of these steps in order

`families` lists what can be exported, `precisions` the machines and the numeric formats, `progress` the terminal.

This is the only package that imports both torch and ONNX. It never imports the server.
"""
