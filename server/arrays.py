"""The types of arrays that more than one module exchanges."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # the graph decides its shape and datatype
Ids = NDArray[np.int64]  # token ids
Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
