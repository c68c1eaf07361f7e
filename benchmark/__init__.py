"""`make bench`: our training against what a user would pick instead, in one run on one machine."""
