"""Training with the same bytes as `stages.core`, faster."""
