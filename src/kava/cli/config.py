"""kava config: list, explain, compare and export recipes; every value with a tag that says how well it is known."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli.common import OVERRIDES, Overwrite, check_flags, no_settings, show_result
from kava.cli.student import Quiet
from kava.config import KEYS, Recipe, RecipeRow, explain, list_recipes, load_recipe, save_recipe, show
from kava.config.text import dump_yaml
from kava.console import fitted, terminal_width
from kava.errors import ConfigError
from kava.outputs import Output, check_folder, check_outputs
from kava.registry import nearest
from kava.text_table import table

CONTEXT = OVERRIDES
LEGEND = (
    "tags: known = several sources or official code agree; noted = one second-hand source; "
    "open = the paper does not tell, the value is our choice; ours = not of the paper"
)


def config(
    ctx: typer.Context,
    list_: Annotated[bool, typer.Option("--list", help="list the shipped recipes (the default)")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="with --list: also what differs from defaults")] = False,
    get: Annotated[str | None, typer.Option(metavar="NAME", help="every value of a recipe (name or path)")] = None,
    compare: Annotated[tuple[str, str] | None, typer.Option(metavar="A B", help="where two recipes differ")] = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="write full recipe files to a folder")] = None,
    format_: Annotated[
        Literal["yaml", "json"] | None,
        typer.Option("--format", help="of the files of --export (yaml); with --get: print such a file"),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="every key, or those of --keys SECTION: default, tag, allowed values, meaning"),
    ] = False,
    filter_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="model size: 1b, 0.5b, 3b, 7b, embedded, blank")
    ] = None,
    filter_dataset: Annotated[str | None, typer.Option(metavar="SET", help="data set: aug, aug_nl, chains")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """List, explain, compare and export recipes.

    --get also takes settings: kava config --get llama1b_aug training.batch_size=64
    """
    flags = (("--list", list_), ("--get", get is not None), ("--compare", compare), ("--keys", keys))
    chosen = [name for name, on in flags if on]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[0]} and {chosen[1]} exclude each other", "give one of them")
    if get is None and not keys:
        no_settings(ctx)
    if verbose and (chosen not in ([], ["--list"]) or export):
        raise ConfigError("--verbose has no effect here", "it belongs to --list")
    if format_ and not (export or get is not None):
        raise ConfigError("--format has no effect here", "it belongs to --export or --get")
    if (filter_size or filter_dataset) and chosen not in ([], ["--list"]):
        raise ConfigError(f"filters have no effect on {chosen[0]}", "they belong to --list and --export")
    if overwrite and not export:
        raise ConfigError("--overwrite has no effect here", "it belongs to --export")
    if keys:
        _keys(check_flags(ctx), quiet)
    elif compare:
        _compare(*compare, quiet)
    elif get is not None and not export:
        _get(load_recipe(get, check_flags(ctx)), format_, quiet)
    else:
        recipes = [load_recipe(get, check_flags(ctx))] if get is not None else _filtered(filter_size, filter_dataset)
        if export:
            _export(recipes, export, format_ or "yaml", overwrite, quiet)
        else:
            _list(recipes, verbose, quiet)


def size_of(recipe: Recipe) -> str:
    """The model's size as in its name: "1b", "0.5b"; "embedded" for the shipped checkpoint."""
    if recipe.model.name.startswith("kava:"):
        return recipe.model.name.removeprefix("kava:")
    size = re.search(r"(\d+(?:\.\d+)?b)(?![a-z0-9])", recipe.model.name.lower())
    return size.group(1) if size else "?"


def dataset_of(recipe: Recipe) -> str:
    """The data set's short name: "aug", "aug_nl", or its own."""
    return recipe.dataset.name.rpartition("/")[2].removeprefix("gsm8k-").replace("-", "_")


def _filtered(size: str | None, dataset: str | None) -> list[Recipe]:
    recipes = [load_recipe(name) for name in list_recipes()]
    for wanted, read, flag in ((size, size_of, "--filter_size"), (dataset, dataset_of, "--filter_dataset")):
        if wanted is None:
            continue
        known = sorted({read(recipe) for recipe in recipes})
        wanted = wanted.lower().replace("-", "_")
        if wanted not in known:
            raise ConfigError(f"{flag} {wanted!r}: no recipe has it", nearest(wanted, known))
        recipes = [recipe for recipe in recipes if read(recipe) == wanted]
    return recipes


def _as_data(row: RecipeRow) -> dict[str, Any]:
    return {"value": row.value, "tag": row.tag, "source": row.source, "origin": row.origin}


def _list(recipes: list[Recipe], verbose: bool, quiet: bool) -> None:
    columns = terminal_width()
    data: list[dict[str, Any]] = [
        {"name": r.about.name, "size": size_of(r), "dataset": dataset_of(r), "tag": r.about.tag, "title": r.about.title}
        for r in recipes
    ]
    blocks = [
        table([list(entry.values()) for entry in data], ["name", "size", "dataset", "tag", "title"], width=columns)
    ]
    for recipe, entry in zip(recipes, data, strict=True) if verbose else ():
        rows = [row for row in explain(recipe) if row.origin != "default"]
        entry["values"] = {row.key: _as_data(row) for row in rows}
        lines = [[row.key, show(row.value), row.tag, row.origin] for row in rows]
        blocks.append(f"{entry['name']}\n" + table(lines, ["key", "value", "tag", "set in"], width=columns))
    show_result(data, fitted("\n\n".join([*blocks, LEGEND])), quiet)


def _get(recipe: Recipe, format_: str | None, quiet: bool) -> None:
    if format_ == "yaml":
        print(dump_yaml(recipe.to_dict()), end="")
        return
    if format_ == "json":
        show_result(recipe.to_dict(), "", quiet=True)
        return
    rows = explain(recipe)
    lines = [[row.key, show(row.value), row.tag, row.origin, row.source] for row in rows]
    text = f"{recipe.about.name}: {recipe.about.title}\n\n" + table(
        lines, ["key", "value", "tag", "set in", "source"], width=terminal_width()
    )
    data = {"name": recipe.about.name, "values": {row.key: _as_data(row) for row in rows}}
    show_result(data, fitted(f"{text}\n\n{LEGEND}"), quiet)


def _compare(first: str, second: str, quiet: bool) -> None:
    left, right = ({row.key: row for row in explain(load_recipe(name))} for name in (first, second))
    every = list(dict.fromkeys([*left, *right]))
    data, lines = {}, []
    for key in every:
        pair = [side.get(key) for side in (left, right)]
        if pair[0] and pair[1] and pair[0].value == pair[1].value:
            continue
        data[key] = [_as_data(row) if row else None for row in pair]
        lines.append([key, *(f"{show(row.value)} [{row.tag}]" if row else "-" for row in pair)])
    same = f"{len(every) - len(lines)} other keys are equal"
    rows = table(lines, ["key", first, second], width=terminal_width())
    text = f"{rows}\n\n{same}\n{LEGEND}" if lines else f"no difference: {same}"
    show_result(data, fitted(text), quiet)


def _export(recipes: list[Recipe], folder: Path, format_: str, overwrite: bool, quiet: bool) -> None:
    targets = {folder / f"{recipe.about.name}.{format_}": recipe for recipe in recipes}
    check_folder("--export", folder)
    outputs = [Output("--export", path, partial(_holds, recipe)) for path, recipe in targets.items()]
    check_outputs(outputs, overwrite=overwrite)
    for path, recipe in targets.items():
        save_recipe(recipe, path)
    paths = [str(path) for path in targets]
    lines = [*(f"wrote {path}" for path in paths), f"each is a recipe: kava train --config {paths[0]}"]
    show_result(paths, "\n".join(lines), quiet)


def _holds(recipe: Recipe, path: Path) -> bool:
    """Whether a file holds this very recipe."""
    return load_recipe(path) == recipe


def _keys(sections: list[str], quiet: bool) -> None:
    names = ("default", "tag", "allowed", "meaning", "source")
    chosen = [key for key in KEYS.values() if not sections or any(_belongs(key.name, name) for name in sections)]
    for section in sections:
        if not any(_belongs(key.name, section) for key in chosen):
            known = dict.fromkeys(name.rpartition(".")[0] for name in KEYS)
            raise ConfigError(f"--keys: there is no section or key {section!r}", nearest(section, [*known, *KEYS]))
    values = {key.name: (key.default, key.tag, key.kind, key.description, key.source) for key in chosen}
    data = {key: dict(zip(names, row, strict=True)) for key, row in values.items()}
    lines = [[key, show(default), *more] for key, (default, *more, _) in values.items()]
    wide = table(lines, ["key", *names[:-1]])
    columns = terminal_width()
    if columns is not None and max(map(len, wide.split("\n"))) > columns:  # a block per key in place of a line
        blocks = (
            [f"{key} = {default}  [{tag}]", f"    {kind}", f"    {text}"] for key, default, tag, kind, text in lines
        )
        wide = "\n".join(line for block in blocks for line in block if line.strip())
    show_result(data, fitted(f"{wide}\n\n{LEGEND}"), quiet)


def _belongs(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")
