"""The type of an array whose shape and datatype the graph decides."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
