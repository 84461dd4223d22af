"""What runs and comparisons leave on disk, and the statistics of it."""
