"""The shared NumPy core: the network, its exact arithmetic and its training.

It knows no files, no DVC and no pictures.
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
