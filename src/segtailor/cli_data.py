"""`segtailor data`: list, download, check and pack data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segtailor.errors import SegtailorError

PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}
# commands on data take `[RECIPE] [--data.KEY VALUE]...`
DATA = {"allow_extra_args": True, "ignore_unknown_options": True}
DATA_USAGE = "[RECIPE] [--data.KEY VALUE]... [OPTIONS]"

data_app = typer.Typer(help="The data sets that segtailor reads.", **PLAIN)


@data_app.command("ls")
def data_ls() -> None:
    """List the data sets that segtailor reads: variants, classes, splits with their images, and licenses."""
    from rich.console import Console

    from segtailor.data import datasets_table

    # a file or a pipe has no width to fit into
    Console(width=None if sys.stdout.isatty() else 250, highlight=False).print(datasets_table())


@data_app.command("get", epilog="Example: segtailor data get voc")
def data_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a data set; see `segtailor data ls`")],
    root: Annotated[Path | None, typer.Option(help="folder to put it in; default: where recipes look")] = None,
    variant: Annotated[str | None, typer.Option(help="as in 10k, of coco-stuff")] = None,
) -> None:
    """Fetch a public data set (voc, ade20k, coco-stuff, loveda), or say what to fetch where.

    Archives are checked and unpacked into the layout that recipes read. After an interruption give the same
    command again.
    """
    from segtailor.data.download.catalogue import find_entry
    from segtailor.data.download.fetch import get

    entry = find_entry(name, variant)
    print(entry if isinstance(entry, str) else entry.describe(root))
    if not isinstance(entry, str) and entry.archives:
        print(get(entry, root, progress=True))


@data_app.command(
    "check",
    context_settings=DATA,
    options_metavar=DATA_USAGE,
    epilog="Example: segtailor data check --data.name camvid --data.root data/camvid",
)
def data_check(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="folder for the report; default: runs/data-check-NAME")] = None,
    split: Annotated[
        str | None, typer.Option(help="as in train,val; default: the recipe's two, and test where there is one")
    ] = None,
) -> None:
    """Read every image and mask: what is wrong, where, and the line of the recipe that fixes it.

    The data are a recipe's, or set by --data.KEY VALUE. Exits with 1 when there are errors, with 0 otherwise.
    """
    from segtailor.data.check import check_data
    from segtailor.recipes import load_data_section

    splits = _names("--split", split)
    report = check_data(load_data_section(context.args), splits=splits, out=out, progress=True)
    print(report.text())
    if report.errors:
        raise typer.Exit(1)


@data_app.command(
    "pack",
    context_settings=DATA,
    options_metavar=DATA_USAGE,
    epilog="Example: segtailor data pack --data.name camvid --data.root data/camvid --out data/camvid-packed",
)
def data_pack(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder to write, new or empty; an interrupted pack there is continued")],
    format: Annotated[  # noqa: A002
        str, typer.Option(help="raw (fastest), png (smallest without loss), jpeg (states its loss), keep (own files)")
    ] = "raw",
    quality: Annotated[int | None, typer.Option(help="of jpeg, 1 to 100; default: 95")] = None,
    shards: Annotated[int | None, typer.Option(help="number of shards of a split; default: by --shard-size")] = None,
    shard_size: Annotated[int | None, typer.Option(help="size of a shard in MiB; default: 256")] = None,
    splits: Annotated[str | None, typer.Option(help="as in train,val,test; default: the recipe's two")] = None,
) -> None:
    """Repack a data set once for fast reading, in chunks of litdata; with --data.size at the training size.

    The data are a recipe's, or set by --data.KEY VALUE. A recipe reads the pack as {name: packed, root: OUT}.
    """
    from segtailor.data.pack import format_pack, pack
    from segtailor.recipes import load_data_section

    data, chosen = load_data_section(context.args), _names("--splits", splits)
    sizes: dict[str, Any] = {"quality": quality, "shards": shards, "shard_mb": shard_size}
    print(format_pack(pack(data, out, splits=chosen, encoding=format, **sizes, progress=True), out))


def _names(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise SegtailorError(f"{option} {text!r} names a split of no name; write it as in train,val")
    return names
