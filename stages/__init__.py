"""The five DVC stages and what they share.

Whatever is imported from here, the numeric runtime is set first, before NumPy can be imported.
"""

from stages import runtime as runtime
