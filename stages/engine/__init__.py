"""Training with the same bytes as `stages.core.training`, compiled and on all cores.

Nobody needs this to understand the network. What may differ from the textbook: sums are taken in
any order and skip terms that are zero, since exact sums do not notice; samples and rows of weights
are divided among threads. What may not: every rounding.
"""
