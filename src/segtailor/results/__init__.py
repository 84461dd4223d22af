"""The files of runs and comparisons, and their statistics."""
