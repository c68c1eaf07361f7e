"""What is run beside the pipeline: recipes, studies and the report."""

import stages as stages  # Ctrl-C is one line while the rest is imported, too
