"""Where each arm places among the others, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

from segtailor.report.comparison.source import Source
from segtailor.results.statistics import ranks


@dataclass
class Place:
    """One seed's dot: ``at`` in percent along the track, ``layer`` dots below its middle: none hides another."""

    at: float
    layer: float


@dataclass
class RankRow:
    """One arm's ranks."""

    arm: str
    role: str
    mean: str
    each: str
    at: float
    places: list[Place]


@dataclass
class Ranks:
    """The rank plot, best mean first; ``ticks`` are (percent, rank)."""

    rows: list[RankRow]
    seeds: list[int]
    ticks: list[tuple[float, int]]
    layers: int

    @property
    def minor(self) -> set[int]:
        """The numbers that a narrow page has no room for."""
        last = self.ticks[-1][1]
        return {number for _, number in self.ticks if number not in (1, last) and (number % 5 or last - number < 2)}


def rank_plot(source: Source) -> Ranks | None:
    """Return the ranks over the seeds that every arm with a result has finished; None without such a seed."""
    seeds = list(source.board.rank_seeds)
    ranked = [result for result in source.board.arms if result.rank is not None]
    if not seeds or len(ranked) < 2:
        return None
    by_seed = [ranks([result.scores[seed] for result in ranked]) for seed in seeds]
    rows = []
    for place, result in enumerate(ranked):
        own = [row[place] for row in by_seed]
        dots = [
            Place(_at(rank, len(ranked)), own[:number].count(rank) - (own.count(rank) - 1) / 2)
            for number, rank in enumerate(own)
        ]
        mean = result.rank or 0.0
        each = ", ".join(f"{rank:g}" for rank in own)
        rows.append(
            RankRow(result.arm, source.role(result.arm), f"{mean:.1f}", each, _at(mean, len(ranked)), dots)
        )  # fmt: skip
    rows.sort(key=lambda row: row.at)
    step = 1 if len(ranked) <= 15 else 5
    numbers = sorted({1, len(ranked), *range(step, len(ranked) + 1, step)})
    deepest = max(dot.layer for row in rows for dot in row.places)
    return Ranks(rows, seeds, [(_at(number, len(ranked)), number) for number in numbers], round(2 * deepest))


def _at(rank: float, count: int) -> float:
    return 100 * (rank - 1) / (count - 1)
