"""Write the made blocks of the study's page: tables and plots of the rows that are there.

    python benchmarks/equal/page.py [--study benchmarks/studies/equal.yaml] [--out docs/study.md]

The page is written by hand, but for what stands between ``<!-- made: NAME -->`` and ``<!-- end -->``. There is a block
``setting``, one ``state``, and for each comparison a ``table:COMPARISON`` and a ``plot:COMPARISON``. Where there is no
page yet, a first one is written. Plots lie in a folder beside the page, of the page's name.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from kept import Kept, keep
from plan import STUDY, Study, read_study
from plots import difference_plot, teacher_plot
from setting import setting, teacher_curves, teacher_records
from skeleton import skeleton
from tables import comparison_table, state
from versus import KIND, versus_table

from segtailor.engine.runs import write_text
from segtailor.errors import SegtailorError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "study.md"
TEACHERS = "teacher-curves"
MARK = re.compile(r"^<!-- (?:made: (?P<name>\S+)|(?P<end>end)) -->[ \t]*$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
        write_page(read_study(options.study), options.out)
    except SegtailorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def write_page(study: Study, page: Path) -> None:
    """Write the page's blocks and plots; nothing is written where a block is wrong."""
    text = page.read_text(encoding="utf-8") if page.exists() else skeleton(study, page)
    names = ["setting", "state"]
    names += [f"{kind}:{name}" for name in study.comparisons for kind in ("table", "plot")]
    versus = [match["name"] for match in MARK.finditer(text) if (match["name"] or "").startswith(f"{KIND}:")]
    check_blocks(text, names + versus, page)
    blocks, plots = made(study, page.stem, versus)
    for name, plot in plots.items():
        target = page.parent / page.stem / f"{name}.svg"
        if plot is not None:
            write_text(target, plot)
        else:
            target.unlink(missing_ok=True)
    write_text(page, filled(text, blocks))


def made(study: Study, folder: str, versus: list[str]) -> tuple[dict[str, str], dict[str, str | None]]:
    """Return what each block holds, ``versus`` among them, and each plot; None for a plot that shows nothing."""
    records = teacher_records(study)
    planned = study.comparisons.values()
    comparisons = [keep(it, study.results, records.get(it.teacher or "")) for it in planned]
    blocks = {"setting": setting(study, comparisons, records), "state": state(comparisons)}
    plots = {TEACHERS: teacher_plot(teacher_curves(records))}
    if plots[TEACHERS] is not None:
        blocks["setting"] += f"\n\n![The teachers' mIoU while they train]({folder}/{TEACHERS}.svg)"
    for kept in comparisons:
        name = kept.planned.name
        blocks[f"table:{name}"] = comparison_table(kept)
        plots[name] = difference_plot(kept.board, _title(kept)) if kept.board is not None else None
        shown = f"![{_title(kept)}: differences to the student alone]({folder}/{name}.svg)"
        blocks[f"plot:{name}"] = "No plot: there is no difference to show yet." if plots[name] is None else shown
    for block in versus:
        blocks[block] = _versus({kept.planned.name: kept for kept in comparisons}, block)
    return blocks, plots


def _versus(comparisons: Mapping[str, Kept], block: str) -> str:
    name, _, arm = block.removeprefix(f"{KIND}:").partition(":")
    if name not in comparisons:
        raise SegtailorError(f"block '{block}': no comparison '{name}'; there are {', '.join(comparisons)}")
    return versus_table(comparisons[name], arm)


def check_blocks(text: str, names: list[str], page: Path) -> None:
    """Raise SegtailorError in one line where a block is missing, unclosed, there twice or unknown."""
    open_block, found = "", []
    for match in MARK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["end"]:
            if not open_block:
                raise SegtailorError(f"{page}, line {line}: '<!-- end -->' closes no block")
            open_block = ""
            continue
        if open_block:
            raise SegtailorError(f"{page}, line {line}: the block '{open_block}' above has no '<!-- end -->'")
        open_block = match["name"]
        found.append(open_block)
        if open_block not in names:
            raise SegtailorError(f"{page}, line {line}: unknown block '{open_block}'; there are {', '.join(names)}")
    if open_block:
        raise SegtailorError(f"{page}: the block '{open_block}' has no '<!-- end -->'")
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise SegtailorError(f"{page}: the block '{twice[0]}' is there twice")
    missing = [name for name in names if name not in found]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise SegtailorError(
            f"{page}: no block {listed}; write for each a line '<!-- made: {missing[0]} -->' and a line '<!-- end -->'"
        )


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """Return ``text`` with what is inside its blocks replaced; all else stays, letter by letter.

    >>> filled("a\\n<!-- made: b -->\\nold\\n<!-- end -->\\n", {"b": "new"})
    'a\\n<!-- made: b -->\\n\\nnew\\n\\n<!-- end -->\\n'
    """
    parts, place = [], 0
    for match in MARK.finditer(text):
        if match["end"]:
            place = match.start()
        else:
            parts += [text[place : match.end()], f"\n\n{blocks[match['name']].strip()}\n\n"]
    return "".join([*parts, text[place:]])


def _title(kept: Kept) -> str:
    return kept.planned.title or kept.planned.name


if __name__ == "__main__":
    main()
