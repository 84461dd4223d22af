"""A comparison's folder read, its statistics, and its leaderboard as a table."""

from __future__ import annotations

from segtailor.comparison.bootstrap import ImageBootstrap, bootstrap_difference
from segtailor.comparison.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.comparison.sheet import csv_table
from segtailor.comparison.table import latex_table, markdown_table, text_table, write_tables
from segtailor.results.model import ArmRun, Comparison, ImageCounts, Outcome, read_comparison

__all__ = [
    "ArmResult",
    "ArmRun",
    "Comparison",
    "ImageBootstrap",
    "ImageCounts",
    "Leaderboard",
    "Outcome",
    "bootstrap_difference",
    "csv_table",
    "latex_table",
    "markdown_table",
    "read_comparison",
    "summarise",
    "text_table",
    "write_tables",
]
