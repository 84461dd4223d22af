"""The study's page before anyone has written on it: what was asked and how, a section a tier, and the made blocks."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from plan import STUDY, Comparison, Study

TIERS = {"tuning": "Tuning", "kt": "A better KT, looked for on `dev`", "final": "Final"}

HEAD = """# {title}

What is each method of distillation worth when all get the same recipe? This page is the answer as far as it was run.
{about}

## How it was asked

- **One recipe.** All arms of a comparison train the same student for the same steps, on the same batches, with the same
  optimizer and schedule. With the same seed they also start from the same student. An arm differs in its method, or in
  what the comparison says that it varies.
- **Chosen on `dev`.** Whatever is chosen, the learning rate among it, is chosen on `dev`: the last fifth of each
  training sequence, which neither the student nor its teacher has seen there (both learn from `fit`, the rest). What is
  reported is scored on `val`. A comparison scored on `dev` makes a choice and is no result.
- **A row** is one arm with one seed. It lies in `{results}/COMPARISON/arms/ARM/seedN`: its scores, the
  confusion matrix of each image, and its fingerprint.
- **A fingerprint** says what made the row: the code that its figures depend on, the method's and the network's own
  code, the recipe, the teacher's weights and PyTorch. Rows that differ in code, teacher or PyTorch never stand in one
  table: the most that agree stay, and the others are named below it.
- **No row is made twice.** A row that another comparison has, of the same code, recipe, seed and teacher, is copied
  from there; the note below the table says so. The student alone is trained anew in each, as times are relative to it.
- **What is missing is said.** Below each table stands what was not run, what failed and why, and what was left out.

```bash
{commands}
```

The study is defined in `{study}`.

## How to read the tables

mIoU is of the last checkpoint, in %, at the masks' own size; ± is the sample standard deviation over seeds. Differences
are in points, to the student alone of the same seed, so that what the seed does to both cancels. The 95 % interval is
that of their mean, by Student's t over seeds; it covers the chance of training, not that of the images. Gap closed is
the mean difference over (teacher - student alone). Boundary IoU is mIoU within a narrow band along the edges. The
verdict is a two-sided paired t test over seeds, corrected by Holm for all arms of the table; below five seeds nothing
is tested. Time is the arm's training, its own stages and its share of the teacher's passes, relative to the student
alone.

In the plots each dot is a seed, the diamond the mean, and the line its 95 % interval.

## The setting

<!-- made: setting -->
<!-- end -->

## What is there

<!-- made: state -->
<!-- end -->
"""


def skeleton(study: Study, page: Path) -> str:
    """Return the whole page with empty blocks; ``page`` is where it is to lie."""
    name = study.path.stem
    places = {"study": f"benchmarks/studies/{name}.yaml", "results": f"benchmarks/results/{name}"}
    commands = _commands(study, places, page)
    parts = [HEAD.format(title=study.title, about=_wrapped(study.about), commands=commands, **places)]
    tiers = dict.fromkeys(comparison.tier for comparison in study.comparisons.values())
    for tier in tiers:
        parts.append(f"## {TIERS.get(tier, f'Tier {tier}' if tier else 'Further comparisons')}\n")
        parts += [_section(it) for it in study.comparisons.values() if it.tier == tier]
        parts.append("Findings:\n")
    return "\n".join(parts)


def _commands(study: Study, places: dict[str, str], page: Path) -> str:
    """Return what runs the study and writes its page, each with what it does; the default study is not named."""
    other = study.path.resolve() != STUDY.resolve()
    chosen = f" --study {places['study']}" if other else ""
    lines = {
        f"python benchmarks/equal{chosen}": "run what is missing; it can be stopped anywhere, and goes on",
        f"python benchmarks/equal{chosen} --list": "say what is there, and run nothing",
        f"segtailor repro {places['results']}/{_example(study)}": "one row again: is it within the spread?",
        f"python benchmarks/equal/page.py{chosen}{f' --out docs/{page.name}' if other else ''}": "write this page's "
        "tables and plots again",
    }
    return "\n".join(f"# {text}\n{line}" for line, text in lines.items())


def _example(study: Study) -> str:
    """Return the place of a row that is reported, one of `kt` where there is any."""
    reported = [it for it in study.comparisons.values() if it.splits == "val"] or list(study.comparisons.values())
    arms = reported[0].arms
    return f"{reported[0].name}/arms/{'kt' if 'kt' in arms else arms[-1]}/seed{reported[0].recipe.seeds[0]}"


def _wrapped(text: str) -> str:
    return fill(" ".join(text.split()), 120, break_on_hyphens=False)


def _section(comparison: Comparison) -> str:
    lines = [f"### {comparison.title or comparison.name}", ""]
    if comparison.about.strip():
        lines += [_wrapped(comparison.about), ""]
    for kind in ("table", "plot"):
        lines += [f"<!-- made: {kind}:{comparison.name} -->", "<!-- end -->", ""]
    return "\n".join(lines)
