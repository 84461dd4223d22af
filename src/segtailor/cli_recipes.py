"""`segtailor recipes`: list, show and copy the shipped recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe's name, or a YAML file")]

recipes_app = typer.Typer(help="List, show and copy the shipped recipes.", **PLAIN)


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the shipped recipes."""
    from segtailor.recipes import list_recipes

    rows = list_recipes()
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))


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
