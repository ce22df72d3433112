"""From a PyTorch model to an artifact: a graph for each kind of machine, proven equal to its source.

Read in the order in which data flows:

    sources         a name the user typed → files on this machine, and whether they have changed
    hub, layout     from a hub id to those files; which files an export reads
    modules         the modules and folders of a model of sentence-transformers
    recipes         a loaded model → what its graph takes and gives, and seeded inputs to try it on
    attention_ops   the runtime's fused attention in place of the block's own
    trace           a recipe → an ONNX graph
    optimize        the graph, with neighbouring nodes fused
    quantize        its matrices in fewer bits, where that is wanted
    runtime         a saved graph, run by ONNX Runtime
    parity          how far the saved graph is from PyTorch, and whether that is near enough
    decode          the same for text that GPT writes step by step, over its cache
    samples         files of texts and images: the user's, or one that training never saw
    preparation     from these to a graph's inputs
    calibration     how far a graph is from PyTorch on the user's; held_out: what rounding does to the score
    inputs          what has to happen to a text or an image before the graph can read it
    graph           these, one after the other, for one kind of machine
    exporter        all of it, from the source to the artifact
    inspection      what is inside an artifact, and whether it still is what was exported; golden_inputs: its images
    artifact        the directory that the server reads: whole or not at all

The only package that knows both torch and ONNX. It knows nothing of the server.
"""
