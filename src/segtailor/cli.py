"""The command line: parse, call the API, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

import segtailor
from segtailor.cli_data import PLAIN, data_app
from segtailor.errors import SegtailorError

FREE = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="segtailor",
    add_completion=False,
    epilog="Start with: segtailor recipes ls   then: segtailor distill toy-kt",
    **PLAIN,
)
recipes_app = typer.Typer(help="List, show and copy the shipped recipes.", **PLAIN)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        print(segtailor.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and exit")
    ] = False,
) -> None:
    """Distill a big semantic-segmentation model into a small one."""


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe's name, or a YAML file")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a name, a run folder, a .safetensors file, published:FILE.pth, or a network of another library: hf:ID, "
        "smp:Arch/encoder, torchvision:NAME, module:package.module:factory, onnx:FILE",
    ),
]


@app.command(context_settings=FREE, epilog="Example: segtailor train toy-teacher --train.steps 300 --run.name teacher")
def train(context: typer.Context, recipe: RecipeName) -> None:
    """Train one model, such as a teacher; any field of the recipe can be set: --section.key VALUE."""
    _stoppable("train", recipe, context.args)


@app.command(context_settings=FREE, epilog="Example: segtailor distill toy-kt --method.variant published")
def distill(
    context: typer.Context,
    recipe: RecipeName,
    arm: Annotated[str | None, typer.Option(help="of a recipe with arms: the one to distill")] = None,
) -> None:
    """Distill a teacher into a student; any field of the recipe can be set: --section.key VALUE."""
    _stoppable("distill", recipe, context.args, arm=arm)


@app.command(context_settings=FREE, epilog="Example: segtailor evaluate runs/toy-kt --split val --json scores.json")
def evaluate(
    context: typer.Context,
    model: ModelName,
    split: Annotated[str | None, typer.Option(help="split to score; default: the recipe's val split")] = None,
    json: Annotated[Path | None, typer.Option(help="write all scores to this file")] = None,
    boundary: Annotated[bool, typer.Option("--boundary", help="also Boundary IoU, F1, scores by distance")] = False,
    calibration: Annotated[bool, typer.Option("--calibration", help="also calibration error and Brier score")] = False,
    class_map: Annotated[
        Path | None, typer.Option(help="YAML file: a class of the model's -> one of the data's, or void")
    ] = None,
) -> None:
    """Score a model: mIoU, per-class IoU, accuracy, Dice; --data.KEY VALUE and --model.KEY VALUE set how it is read."""
    from segtailor.jobs.evaluate import data_of, model_choices
    from segtailor.recipes import parse_overrides

    overrides = parse_overrides(context.args)
    data, settings = data_of(model, overrides)
    result = segtailor.evaluate(
        model, data, split, settings, json, boundary=boundary, calibration=calibration, class_map=class_map,
        choices=model_choices(overrides),
    )  # fmt: skip
    print(result)


@app.command(context_settings=FREE, epilog="Example: segtailor compare camvid-cpu-compare --seeds '[0, 1]'")
def compare(context: typer.Context, recipe: RecipeName) -> None:
    """Train several methods side by side on the same batches, over seeds, and compare them in one table and report."""
    _stoppable("compare", recipe, context.args)


@app.command(
    context_settings=FREE, epilog="Example: segtailor repro final kt 0, or: segtailor repro runs/c/arms/kt/seed0"
)
def repro(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="RECORD ARM SEED | ROW", help="a record of benchmarks/results, or a run's row")
    ],
) -> None:
    """Train a recorded row of a comparison again, and check that it falls within the spread over seeds."""
    from segtailor.engine.runs import RunStopped
    from segtailor.jobs.repro import repro as job
    from segtailor.recipes import parse_overrides

    words = list(takewhile(lambda word: not word.startswith("--"), context.args))
    overrides = parse_overrides(context.args[len(words) :])
    if len(words) not in (0, 2) or (words and not words[1].isdigit()):
        raise SegtailorError("give a record, an arm and a seed, as in: segtailor repro final kt 0")
    chosen: dict[str, Any] = {"arm": words[0], "seed": int(words[1])} if words else {}
    try:
        found = job(source, overrides, **chosen)
    except RunStopped as stop:
        print(f"{stop}; give the same command again to continue", file=sys.stderr)
        raise typer.Exit(stop.code) from None
    print(found.text())
    if not found.within:
        raise typer.Exit(1)


@app.command(epilog="Example: segtailor predict runs/toy-kt photos/ --out predictions")
def predict(
    model: ModelName,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="an image, or a folder of images")],
    out: Annotated[Path, typer.Option(help="folder for index masks, colored masks and overlays")],
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH given to the network; default: the training size")
    ] = None,
    window: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of a sliding window; default: whole image")] = None,
) -> None:
    """Segment images: writes index masks, colored masks and overlays under --out."""
    slide = _size(window, "--window")
    mode: Any = "slide" if slide else "whole"
    written = segtailor.predict(model, path, out, size=_size(size, "--size"), mode=mode, window=slide)
    print(f"{len(written)} images segmented; masks, colors and overlays are in {out}")


@app.command(epilog="Example: segtailor publish runs/toy-kt --to hf:./toy-student")
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or a .safetensors file")],
    to: Annotated[str, typer.Option(help="hf:USER/NAME on the hub, or hf:./FOLDER")],
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    license: Annotated[str | None, typer.Option(help="license id that the repository states")] = None,  # noqa: A002
) -> None:
    """Write a run's model as a Hugging Face repository: weights, card with metrics and licenses, recipe."""
    print(segtailor.publish(run, to, private, license))


@app.command()
def models() -> None:
    """List the networks that can be teacher or student."""
    print("\n".join(segtailor.list_models()))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show this method's page")] = None,
) -> None:
    """List the distillation methods, or show one: what it computes, its options and their defaults."""
    from segtailor.methods.describe import describe

    print(_columns(segtailor.list_methods()) if name is None else describe(name))


@app.command(epilog="Example: segtailor inspect deeplabv3-resnet18 --height 512 --width 1024")
def inspect(
    model: ModelName,
    height: Annotated[int, typer.Option(min=1, help="image height")] = 512,
    width: Annotated[int, typer.Option(min=1, help="image width")] = 1024,
    classes: Annotated[int, typer.Option(min=1, help="classes, for a model given by name")] = 19,
    paths: Annotated[bool, typer.Option("--paths", help="list every module path, which a recipe's taps take")] = False,
) -> None:
    """Show parameters, multiply-adds and the taps that a method may use, with shape and stride."""
    from segtailor.models.inspect import inspect_model, list_paths
    from segtailor.models.store import resolve

    network = resolve(model, classes)
    print((list_paths if paths else inspect_model)(network, (height, width)).text())


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the shipped recipes."""
    from segtailor.recipes import list_recipes

    print(_columns(list_recipes().items()))


@recipes_app.command("show")
def recipes_show(recipe: RecipeName) -> None:
    """Print a recipe."""
    from segtailor.recipes import recipe_path

    print(recipe_path(recipe).read_text(encoding="utf-8"), end="")


@recipes_app.command("cp")
def recipes_cp(
    recipe: RecipeName, target: Annotated[Path, typer.Argument(help="file or folder to write to")] = Path()
) -> None:
    """Copy a shipped recipe, to change it."""
    from segtailor.recipes import copy_recipe

    print(copy_recipe(recipe, target))


@recipes_app.command("fields")
def recipes_fields() -> None:
    """List every field of a recipe with its default and meaning."""
    from segtailor.recipes import list_fields

    print("\n".join(list_fields()))


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run or of a comparison")]) -> None:
    """Rewrite the report.html of a run or a comparison."""
    from segtailor.report import write_report

    print(write_report(run))


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _size(text: str | None, option: str) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise SegtailorError(f"{option} is HEIGHTxWIDTH in pixels, as in 512x1024, not '{text}'")
    return int(height), int(width)


def _stoppable(command: str, recipe: str, arguments: list[str], **options: Any) -> None:
    """Run the job called like ``command`` and print its result, or after Ctrl-C or SIGTERM how to continue it.

    Of several processes the first one prints.
    """
    from segtailor.engine.launch import prints
    from segtailor.engine.runs import RunStopped
    from segtailor.recipes import parse_overrides

    try:
        result = getattr(segtailor, command)(recipe, parse_overrides(arguments), **options)
    except RunStopped as stop:
        where = shlex.quote(str(stop.folder / "recipe.yaml" if stop.folder else recipe))
        if prints():
            print(f"{stop}; continue with: segtailor {command} {where} --run.exists resume", file=sys.stderr)
        raise typer.Exit(stop.code) from None
    if prints():
        print(result)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except SegtailorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if not error.filename and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # of no file, such as a connection
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; free space or choose another folder, then continue", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
