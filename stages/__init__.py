"""The five DVC stages and what they share.

Whatever is imported from here, Ctrl-C is answered in one line from now on, and the numeric runtime
is set before NumPy can be imported.
"""

from stages.pipeline import interrupts as interrupts

# isort: split
from stages.pipeline import command as command
from stages.pipeline import threads as threads
