"""`segtailor data`: what lies in a data set, and what is wrong with it."""

from __future__ import annotations

import typer

from segtailor.cli_recipes import PLAIN

data_app = typer.Typer(help="The data sets that segtailor reads.", **PLAIN)


@data_app.command("ls")
def data_ls() -> None:
    """List the data sets that segtailor reads."""
    from segtailor.data import list_datasets

    print("\n".join(list_datasets()))
