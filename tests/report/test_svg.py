from __future__ import annotations

import itertools
import random

import pytest

from segtailor.report.svg import Line, Plot, draw, nice_ticks, place_labels


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 0.2), (1e-6, 2e-6), (5.0, 5.0), (0.0, 0.0), (12, 40000)])
def test_ticks_cover_the_range_with_few_even_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)


def test_labels_of_a_crowd_do_not_cover_each_other():
    generator = random.Random(1)
    dots = [(generator.uniform(20, 450), generator.uniform(20, 300)) for _ in range(14)]
    sizes = [(60.0, 15.0)] * len(dots)
    boxes = [
        (x + right - 30, y + down - 7.5, x + right + 30, y + down + 7.5)
        for (x, y), (right, down) in zip(dots, place_labels(dots, sizes, 470, 320), strict=True)
    ]
    for number, one in enumerate(boxes):
        assert one[0] >= 0
        assert one[2] <= 470
        for other in boxes[:number]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart


def test_a_band_is_drawn_where_seeds_differ_and_the_readout_has_it():
    alike, apart = [(x, 1.0, 1.0, 1.0) for x in (0.0, 1.0)], [(x, 2.0, 1.0, 3.0) for x in (0.0, 1.0)]
    plot = draw(Plot("", "", [Line("a", "A", "", alike), Line("b", "B", "", apart)]), (0.0, 1.0), y_range=(0.0, 4.0))
    assert [bool(line.band) for line in plot.lines] == [False, True]
    assert plot.lines[1].path == "M0.0,500.0L1000.0,500.0"
    assert "[[0.0, 1.0], [1.0, 1.0]]" in plot.data
    assert "[[0.0, 2.0, 1.0, 3.0], [1.0, 2.0, 1.0, 3.0]]" in plot.data


def test_a_spike_leaves_the_plot_and_the_level_it_rises_from_does_not():
    points = [(float(x), y, y, y) for x, y in enumerate([1.0] * 99 + [1000.0])]
    plot = draw(Plot("", "", [Line("a", "A", "", points)]), (0.0, 99.0), smooth=True, raw=True)
    assert plot.lines[0].raw
    assert plot.y_ticks[0].label in ("0", "1")
