"""Write the study's tables and plots from the records: the pages under docs/study.

    python benchmarks/page.py [--results benchmarks/results] [--out docs/study]

The findings, docs/study.md, are written by hand and point to these pages. A record that no page lists is an error.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from textwrap import fill
from typing import Any, BinaryIO

import numpy as np

from plots import curve_plot, difference_plot
from segtailor.errors import SegtailorError
from segtailor.files import write_atomically
from segtailor.results.formatting import MISSING, interval, mean_and_std, p_value, percent, points
from segtailor.results.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.results.model import Comparison, Outcome
from segtailor.results.record import VERSIONS, Key, Row, read_record, read_rows

HERE = Path(__file__).resolve().parent
PAGES = {
    "tuning": ("Tuning", ["alone-lr", "alone-lr-transformer"]),
    "tier-a": ("Tier A", ["tier-a"]),
    "tier-b": ("Tier B", ["tier-b"]),
    "tier-c": ("Tier C", ["tier-c"]),
    "tier-d": ("Tier D", ["tier-d"]),
    "tier-e": ("Tier E", ["alone-lr-resnet18", "alone-lr-mobilenetv2", "tier-e-resnet18", "tier-e-mobilenetv2"]),
    "search": (
        "The search on `dev`",
        ["kt-1", "kt-2", "kt-3", "kt-4", "kt-5", "longer", "unlabelled", "tune", "tune-2"],
    ),
    "final": ("The chosen method", ["final"]),
    "kt": ("Knowledge Tailoring, its terms on `dev`", ["kt-features", "kt-logits"]),
    "earlier": (
        "Earlier and smaller comparisons",
        ["camvid-120x160", "camvid-120x160-methods", "camvid-120x160-quarter", "toy", "toy-compare"],
    ),
}
VERSUS = {"final": "stagewise", "tier-d": "stagewise", "camvid-120x160-quarter": "dist-unlabelled"}
"""Arms that are compared with every other arm of their record, too."""
BY_DRIVE = ("kt-3", "kt-4", "kt-5", "unlabelled")
"""Records of `dev` whose arms are scored by the drive that the frames are from, too; `val` is of one drive."""
DRIVES = "## Scores of `dev` by drive\n\nmIoU, means over seeds, on the frames of each drive.\n"
MADE = "Written by `python benchmarks/page.py`; do not edit by hand. How to read the tables: [docs/study.md]({}).\n"


@dataclass
class Record:
    """One record: the comparison, its plan and its rows as they are written."""

    comparison: Comparison
    plan: dict[str, Any]
    rows: dict[Key, Row]

    @cached_property
    def board(self) -> Leaderboard:
        """The figures of every arm; no image is drawn again, as the tables give the interval over seeds."""
        return summarise(self.comparison, resamples=1)

    @property
    def alone(self) -> dict[int, Outcome]:
        """The finished rows of the student alone."""
        return self.comparison.finished(self.comparison.baseline) if self.comparison.baseline else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "study")
    options = parser.parse_args()
    try:
        for name, text in pages(read_records(options.results)).items():
            write_atomically(options.out / name, partial(_write, text))
    except SegtailorError as error:
        raise SystemExit(f"error: {error}") from None


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def read_records(folder: Path) -> dict[str, Record]:
    """Return all records of the folder by name."""
    names = sorted(path.name.removesuffix(".rows.jsonl") for path in folder.glob("*.rows.jsonl"))
    plans = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    return {name: Record(read_record(folder / name), plans[name], read_rows(folder / name)) for name in names}


def pages(records: Mapping[str, Record]) -> dict[str, str]:
    """Return the text of every page and plot by file name."""
    listed_names = [name for _, names in PAGES.values() for name in names]
    unlisted = [name for name in records if name not in listed_names]
    if unlisted:
        raise SegtailorError(f"no page lists the record {unlisted[0]}; add it to PAGES in benchmarks/page.py")
    files: dict[str, str] = {}
    for page, (title, names) in PAGES.items():
        there = [name for name in names if name in records]
        parts = [f"# {title}\n", MADE.format("../study.md")]
        for name in there:
            plot = difference_plot(records[name].board, records[name].plan.get("title", name))
            parts += [section(name, records[name], plot is not None)]
            files |= {f"{name}.svg": plot} if plot else {}
        if page == "search" and all(name in records for name in BY_DRIVE):
            parts += [
                "## Scores of `dev` by drive\n",
                *(by_drive(records[name], records["final"]) for name in BY_DRIVE),
            ]
        files |= {f"{page}.md": "\n".join(parts)} if there else {}
    return files | setting(records)


def section(name: str, record: Record, plot: bool) -> str:
    """Return a record's heading, table, notes and plot."""
    found, title = record.comparison, record.plan.get("title", name)
    about = fill(record.plan.get("about", ""), 120, break_on_hyphens=False)
    split = found.recipe["data"].get("val_split", "val")
    teacher = f"; the teacher scores {percent(found.teacher_miou)}" if found.teacher_miou is not None else ""
    usual = usual_versions(record.rows)
    caption = f"Scored on `{split}`; alone is `{found.baseline}`{teacher}. Made at commit {usual['commit']} with "
    caption += f"segtailor {usual['segtailor']}, PyTorch {usual['torch']}; raw: `benchmarks/results/{name}.*`."
    parts = [f"## {title}", about, arm_table(record), caption, "\n".join(f"- {note}" for note in notes(record))]
    if name in VERSUS:
        parts += [f"How far `{VERSUS[name]}` is above each other arm:", versus_table(record, VERSUS[name])]
    parts += [f"![{title}: differences to the student alone]({name}.svg)"] if plot else []
    return "\n\n".join(part for part in parts if part) + "\n"


def arm_table(record: Record) -> str:
    """Return the arms with a result, best first; columns without a figure are left out."""
    found, alone = record.comparison, record.alone
    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda result: f"`{result.arm}`",
        "seeds": lambda result: str(len(result.scores)),
        "mIoU": lambda result: mean_and_std(result.last),
        "to alone (95 %)": difference,
        "each seed": lambda result: ", ".join(map(points, result.differences.values())) or MISSING,
        "gap closed": gap,
        "boundary IoU, to alone": lambda result: boundary(found.finished(result.arm), alone),
        "verdict": verdict,
        "time": lambda result: times(record.rows, result.arm),
    }
    shown = [result for result in record.board.arms if result.scores]
    cells = {head: [cell(result) for result in shown] for head, cell in columns.items()}
    filled = {head: column for head, column in cells.items() if any(cell != MISSING for cell in column)}
    return markdown([list(filled), *map(list, zip(*filled.values(), strict=True))])


def versus_table(record: Record, arm: str) -> str:
    """Return by how much ``arm`` is above each other one, and above the student alone by class."""
    found = record.comparison.model_copy(update={"baseline": arm})
    ours = found.finished(arm)
    rows = [["arm", "seeds", f"`{arm}` above it (95 %)", "each seed", "boundary IoU", "verdict"]]
    for result in summarise(found, resamples=1).arms:
        if result.difference is None:
            continue
        over = result.over_seeds
        span = f" ({points(-over.high)} to {points(-over.low)})" if over else ""
        each = ", ".join(points(-value) for value in result.differences.values())
        edge = boundary(ours, found.finished(result.arm))
        count = str(len(result.differences))
        rows.append([f"`{result.arm}`", count, points(-result.difference.mean) + span, each, edge, verdict(result)])
    gains = []
    for index, name in enumerate(found.classes):
        pairs = [(ours[seed].iou[index], record.alone[seed].iou[index]) for seed in ours.keys() & record.alone.keys()]
        known = [first - second for first, second in pairs if first is not None and second is not None]
        gains += [(sum(known) / len(known), name)] if known else []
    by_class = ", ".join(f"{name} {points(gain)}" for gain, name in sorted(gains, reverse=True))
    corrected = "Points, seed by seed; the verdicts are corrected by Holm for the arms of this table."
    text = f"{corrected} By class, `{arm}` above `{record.comparison.baseline}`, means over seeds: {by_class}."
    return f"{markdown(rows)}\n\n{fill(text, 120, break_on_hyphens=False)}"


def notes(record: Record) -> list[str]:
    """Return what the table does not show: what failed, is missing, or was made by something else than most."""
    rows, usual = record.rows, usual_versions(record.rows)
    groups: dict[str, list[Key]] = {}
    for key, run in record.comparison.runs.items():
        row = rows.get(key)
        texts = []
        if row is None or run.outcome is None:
            texts = ["not run"] if row is None else [f"failed: {run.reason or 'no reason was recorded'}"]
        else:
            other = [f"{name} {row.get(name)}" for name in VERSIONS if row.get(name) != usual[name]]
            texts += [f"made with {', '.join(other)}"] if other else []
            texts += [f"another recipe ({json.dumps(row['changes'])})"] if row.get("changes") else []
            texts += (
                [f"the same as in `{row['same_as'].split('/')[0]}`, and taken from there"] if "same_as" in row else []
            )
            if row.get("alone_seconds") is None and any(it.get("alone_seconds") for it in rows.values()):
                texts.append("not trained beside the student alone, and so not timed")
        for text in texts:
            groups.setdefault(text, []).append(key)
    return [f"{text}: {listed(keys)}" for text, keys in groups.items()]


def usual_versions(rows: Mapping[Key, Row]) -> dict[str, Any]:
    """Return the commit and the versions that made most rows."""
    return {name: Counter(row.get(name) for row in rows.values()).most_common(1)[0][0] for name in VERSIONS}


def listed(keys: Iterable[Key]) -> str:
    """Return rows arm by arm.

    >>> listed([("kd", 0), ("kd", 1), ("kt", 0)])
    '`kd` seeds 0, 1; `kt` seed 0'
    """
    arms: dict[str, list[str]] = {}
    for arm, seed in keys:
        arms.setdefault(arm, []).append(str(seed))
    return "; ".join(f"`{arm}` seed{'s'[: len(seeds) - 1]} {', '.join(seeds)}" for arm, seeds in arms.items())


def by_drive(record: Record, final: Record) -> str:
    """Return each arm's mIoU on the frames of each drive, and on those of other drives than `val`'s."""
    drives = [image.split("_")[0] for image in record.plan["images"]]
    apart = set(drives) - {image.split("_")[0] for image in final.plan["images"]}
    groups = {f"{drive} ({drives.count(drive)} frames)": {drive} for drive in sorted(set(drives))}
    groups |= {f"apart from `val` ({sum(drive in apart for drive in drives)})": apart}
    groups |= {f"all ({len(drives)})": set(drives)}
    rows = [["arm", "seeds", *groups]]
    for arm in record.comparison.arms:
        images = [outcome.images for outcome in record.comparison.finished(arm).values() if outcome.images is not None]
        row = [f"`{arm}`", str(len(images))]
        for group in groups.values():
            chosen = [drive in group for drive in drives]
            scores = [replace(counts, hits=counts.hits[chosen], unions=counts.unions[chosen]).miou for counts in images]
            row.append(percent(float(np.mean(scores))))
        rows.append(row)
    return f"`{record.comparison.name}`:\n\n{markdown(rows)}\n"


def setting(records: Mapping[str, Record]) -> dict[str, str]:
    """Return the page of teachers and records, and the plot of the teachers' curves."""
    files, parts = {}, ["# Teachers and records\n", MADE.format("../study.md")]
    teachers = {split: records[name] for split, name in (("val", "final"), ("dev", "kt-5")) if name in records}
    if teachers:
        parts += [teacher_scores(teachers), ""]
        curves = {
            split: [(float(point["step"]), 100 * point["miou"]) for point in record.plan["teacher_trained"]["curve"]]
            for split, record in teachers.items()
        }
        files["teacher-curves.svg"] = curve_plot(curves, "The teachers while they train: mIoU, %", "training step")
        parts += ["![The teachers' mIoU while they train](teacher-curves.svg)\n"]
    rows = [["page", "record", "arms", "seeds", "rows", "there"]]
    for page, name in ((page, name) for page, (_, names) in PAGES.items() for name in names if name in records):
        found = records[name].comparison
        counts = (len(found.arms), len(found.seeds), len(found.runs), sum(map(len, map(found.finished, found.arms))))
        rows.append([f"[{page}]({page}.md)", f"`{name}`: {records[name].plan['title']}", *map(str, counts)])
    return {**files, "setting.md": "\n".join([*parts, "## The records\n", markdown(rows, 2), ""])}


def teacher_scores(teachers: Mapping[str, Record]) -> str:
    """Return for each split how the teacher and the student alone score."""
    rows = [["split", "trained on", "teacher, mIoU", "its last evaluations", "student alone, mIoU", "gap, points"]]
    for split, record in teachers.items():
        taught, alone = record.comparison.teacher_miou, record.board[record.comparison.baseline or ""]
        assert taught is not None
        assert alone.last is not None
        last = [f"{percent(it['miou'])} at {it['step']}" for it in record.plan["teacher_trained"]["curve"][-4:]]
        mine = f"{mean_and_std(alone.last)} ({len(alone.scores)} seeds, `{record.comparison.name}`)"
        cells = [percent(taught), ", ".join(last), mine, percent(taught - alone.last.mean)]
        rows.append([f"`{split}`", f"`{record.plan['recipe']['data']['train_split']}`", *cells])
    return markdown(rows, left=2)


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return ``rows``, heads first, as a table; the first ``left`` columns are words, the others figures.

    >>> print(markdown([["arm", "mIoU"], ["kd", "50.00"]]))
    | arm | mIoU |
    |---|---:|
    | kd | 50.00 |
    """
    rule = "|" + "|".join(["---"] * left + ["---:"] * (len(rows[0]) - left)) + "|"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def difference(result: ArmResult) -> str:
    """Return the mean difference to the student alone and its interval over seeds."""
    if result.difference is None:
        return MISSING
    return points(result.difference.mean) + (f" ({interval(result.over_seeds)})" if result.over_seeds else "")


def gap(result: ArmResult) -> str:
    """Return the share of the gap between teacher and student alone that the arm closes."""
    return MISSING if result.gap_closed is None else f"{percent(result.gap_closed, 0)} %"


def verdict(result: ArmResult) -> str:
    """Return the verdict, with p where there are seeds enough for one."""
    if result.verdict == "baseline" or result.p_holm is None:
        return result.verdict.replace("baseline", "alone")
    return f"{result.verdict}, p {p_value(result.p_holm)}"


def boundary(arm: Mapping[int, Outcome], alone: Mapping[int, Outcome]) -> str:
    """Return the mean difference of boundary IoU over the seeds of both."""
    pairs = [(arm[seed].boundary, alone[seed].boundary) for seed in arm if seed in alone and arm != alone]
    known = [first["miou"] - second["miou"] for first, second in pairs if first and second]
    return points(sum(known) / len(known)) if known and len(known) == len(pairs) else MISSING


def times(rows: Mapping[Key, Row], arm: str) -> str:
    """Return how long the arm trains for each second of the student alone in the same run, over the seeds of both."""
    parts = ("seconds", "stage_seconds", "teacher_seconds")
    timed = [row for key, row in rows.items() if key[0] == arm and row.get("alone_seconds")]
    known = [row for row in timed if all(row.get(part) is not None for part in parts)]
    whole = sum(row[part] for row in known for part in parts)
    return f"{whole / sum(row['alone_seconds'] for row in known):.2f}×" if known else MISSING


if __name__ == "__main__":
    main()
