"""Shared by the verbs: a recipe from flags and settings, and results for people or for programs.

A verb that takes settings of a recipe has `CONTEXT = OVERRIDES` and calls `parse_recipe_args` (see `cli/train.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kava.config import KEYS, Recipe, load_recipe
from kava.config.trust import FLAG, allow_code, requests, trusted
from kava.console import fitted, visible
from kava.errors import ConfigError
from kava.registry import nearest

OVERRIDES: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a file even if kava did not write it")]


def parse_recipe_args(config: str, extra: typer.Context | Sequence[str], *flags: str | None) -> Recipe:
    """The recipe `config` (name or path) changed by the settings on the command line.

    `extra` is what remains after the verb's own flags; `flags` are settings that flags of the verb stand for
    ("system.seed=7"; None = flag not given). A setting given both ways is an error.
    """
    words = check_flags(extra)
    settings = [flag for flag in flags if flag is not None]
    keys = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    for setting in settings:
        key = setting.partition("=")[0]
        if key in keys:
            raise ConfigError(f"command line: {key} is set twice, by a flag and as {key}=...", "leave one of them out")
    return caller_trusts(load_recipe(config, [*words, *settings]), extra)


def caller_trusts(recipe: Recipe, extra: typer.Context | Sequence[str]) -> Recipe:
    """The recipe as the command line grants it to run code (see `kava.config.trust`)."""
    recipe = trusted(recipe, not isinstance(extra, Sequence) and extra.params.get(FLAG, False))
    if requests(recipe):
        allow_code()
    return recipe


def check_flags(extra: typer.Context | Sequence[str]) -> list[str]:
    """The words that remain after the verb's own flags; an unknown flag is an error that names the nearest known one."""
    words = list(extra if isinstance(extra, Sequence) else extra.args)
    parameters = [] if isinstance(extra, Sequence) else extra.command.params
    own = [name for parameter in parameters for name in parameter.opts if name.startswith("--")]
    for word in words:
        flag = word.partition("=")[0]
        number = flag.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit()
        if flag.startswith("-") and not flag.startswith("--") and not number:
            raise ConfigError(f"unknown flag {flag!r}", "flags start with two dashes")
        if flag.startswith("--") and "." not in flag:
            same_leaf = [key for key in KEYS if key.rpartition(".")[2] == flag.removeprefix("--")]
            hint = f"did you mean {'--' + same_leaf[0]!r}?" if same_leaf else nearest(flag, own)
            raise ConfigError(f"unknown flag {flag!r}", hint)
    return words


def no_settings(extra: typer.Context, hint: str = "settings need a recipe they apply to") -> None:
    """An error for section.key=value where the verb, used like this, reads no recipe."""
    if words := check_flags(extra):
        raise ConfigError(f"unexpected {words[0]!r}", hint)


def show_result(data: Mapping[str, Any] | Sequence[Any], text: str, quiet: bool, coloured: bool = False) -> None:
    """Print a result: `text` for people, or with --quiet `data` as one JSON document and nothing else.

    Control characters are printed as escapes, unless the text is `coloured`, whose maker has seen to that.
    """
    print(json.dumps(data, indent=2, allow_nan=False) if quiet else fitted(text if coloured else visible(text)))
