"""Requests of tritonclient, built in one line."""

import numpy as np
import tritonclient.grpc as triton

IDS = np.random.default_rng(0).integers(5, 200, (3, 9))
LENGTHS = [9, 4, 1]  # of the rows of IDS
MASK = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(np.int64)


def tensor(name, values, datatype="BYTES", shape=None):
    array = values if isinstance(values, np.ndarray) else np.array(values, object)
    made = triton.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array)


def infer(client, model, inputs, **options):
    """The response to a request with inputs of (name, values) or (name, values, datatype)."""
    return client.infer(model, [tensor(*each) for each in inputs], **options)
