"""What is run beside the pipeline: recipes, studies and the report."""
