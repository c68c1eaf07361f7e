"""The definition of the network and of its training, in NumPy alone.

Every byte of a trained network is defined by `stages.core.training`. Nothing here knows of files,
DVC, pictures or the engine that trains faster.
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
