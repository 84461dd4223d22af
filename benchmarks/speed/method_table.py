"""From the raw results of method_cost.py: the table, and what the package carries of it."""

from __future__ import annotations

import statistics
from typing import Any

HEAD = """# What the methods cost in training

Made by `python benchmarks/speed/method_cost.py`; do not edit by hand. Time is that of all terms, forward and backward,
over that of the networks (teacher forward, student forward and backward); memory is the peak of a training step above
that of the networks alone. Optimizer states are in neither, but for the discriminator's. A figure near the networks'
own drift, below, is noise.

| method | time | memory | discriminator | stage before | time, GPU | memory, GPU |
|---|---:|---:|---:|---|---:|---:|
"""
NOT_MEASURED = "not measured"
VARIANTS = ("clean", "published")


def table(document: dict[str, Any]) -> str:
    """Return the table of all methods in Markdown, with its settings and the networks' own figures below."""
    sections = [document.get(device, {"methods": {}}) for device in ("cpu", "cuda")]
    names = list(dict.fromkeys(name for section in sections for name in section["methods"]))
    lines = []
    for name in names:
        for variant in VARIANTS:
            cpu, gpu = (section["methods"].get(name, {}).get(variant) for section in sections)
            if cpu is None and gpu is None:
                continue
            label = name if variant == "clean" else f"{name}, published"
            beside = cpu or gpu
            cells = [label, *step(cpu), discriminator(beside), stage(beside), *step(gpu)]
            lines.append("| " + " | ".join(cells) + " |\n")
    notes = [networks(device, section) for device, section in zip(("CPU", "GPU"), sections, strict=True)]
    notes += [note for section in sections for note in remarks(section)]
    return HEAD + "".join(lines) + "\n" + "".join(f"- {note}\n" for note in dict.fromkeys(notes) if note)


def step(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return NOT_MEASURED, NOT_MEASURED
    if "error" in row:
        return "failed", "failed"
    return percent(row["time"]), megabytes(row["memory"])


def discriminator(row: dict[str, Any]) -> str:
    return percent(row["discriminator"]["time"]) if "discriminator" in row else ""


def stage(row: dict[str, Any]) -> str:
    if "stage" not in row:
        return ""
    found = row["stage"]
    return f"{steps_of(found)} of {times(found['time'])} the networks' time, {megabytes(found['memory'])}"


def steps_of(found: dict[str, Any]) -> str:
    return "as many steps as the run" if found["steps"] is None else f"{found['steps']} steps"


def networks(device: str, section: dict[str, Any]) -> str:
    """Return the networks' times at the start and at the end of each run."""
    if "runs" not in section:
        return ""
    runs = []
    for run in section["runs"]:
        ends = [together(run[key]) for key in ("start", "end") if key in run]
        runs.append(" s, at the end ".join(f"{seconds:.2f}" for seconds in ends) + " s")
    peak = section["runs"][-1]["peak"]
    held = "" if peak is None else f"; their peak {peak / 1e6:.0f} MB"
    return f"{device}: {words(section['setting'])}. The networks took {', in another run '.join(runs)}{held}."


def together(seconds: dict[str, list[float]]) -> float:
    return sum(statistics.median(seconds[role]) for role in ("teacher", "student"))


def remarks(section: dict[str, Any]) -> list[str]:
    found = []
    for name, variants in section["methods"].items():
        for variant, row in variants.items():
            if "error" in row:
                found.append(f"{name}, {variant}: {row['error'].splitlines()[0]}")
            if "own_teacher" in row and variant == "clean":
                found.append(f"{name}: {own_teacher(row['own_teacher'])}.")
            if row.get("buffers", {}).get("bytes", 0) > 1e6:
                size = row["buffers"]
                found.append(
                    f"{name}, {variant}: at {size['classes']} classes and {size['channels']} channels its buffers "
                    f"take {size['bytes'] / 1e6:.0f} MB."
                )
    return found


def own_teacher(found: dict[str, Any]) -> str:
    return (
        f"its own teacher takes {times(found['time'])} the networks' time in each step, instead of "
        f"{times(found['instead_of'])} for the recipe's, which is not in its peak either"
    )


def derive_costs(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the package shows: the default variants on a CPU, and on a GPU where they were measured there."""
    found = {device: compact(document[device]) for device in ("cpu", "cuda") if device in document}
    if "cpu" not in found:
        return None
    return {**found["cpu"], **({"cuda": found["cuda"]} if "cuda" in found else {})}


def compact(section: dict[str, Any]) -> dict[str, Any]:
    methods = {}
    for name, variants in section["methods"].items():
        row = variants.get("clean", {})
        if row.get("memory") is None:
            continue
        methods[name] = {"time": rounded(row["time"]), "memory": row["memory"]}
        notes = []
        if "discriminator" in row:
            methods[name]["discriminator"] = rounded(row["discriminator"]["time"])
            notes.append(f"its discriminator's step takes another {percent(row['discriminator']['time'])}")
        if "own_teacher" in row:
            methods[name]["own_teacher"] = {key: rounded(row["own_teacher"][key]) for key in ("time", "instead_of")}
            notes.append(own_teacher(row["own_teacher"]))
        if "stage" in row:
            found = row["stage"]
            methods[name]["stage"] = {
                "time": rounded(found["time"]),
                "memory": found["memory"],
                "steps": found["steps"],
            }
            notes.append(f"before it a stage: {stage(row)}")
        if notes:
            methods[name]["note"] = "; ".join(notes)
    return {"setting": words(section["setting"]), "methods": methods}


def words(facts: dict[str, Any]) -> str:
    """Return a setting in words."""
    height, width = facts["size"]
    threads = f"{facts['threads']} CPU thread{'s' if facts['threads'] > 1 else ''}"
    where = f"bf16 autocast on {facts['gpu']}" if "gpu" in facts else f"fp32 on {threads}"
    return f"{facts['teacher']} to {facts['student']}, batch {facts['batch']}, {height} x {width}, {where}"


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def times(share: float) -> str:
    return f"{share:.2f} times"


def megabytes(count: int | None) -> str:
    return NOT_MEASURED if count is None else f"{count / 1e6:+.0f} MB"
