"""What is wrong with a command line that its verb does not take, and what to type instead."""

import re
from collections.abc import Sequence
from typing import Any

from kava.cli.list_flags import grouped
from kava.errors import ConfigError
from kava.registry import nearest

_VALUE = re.compile(r"invalid value for '(--\w+)'", re.IGNORECASE)


def usage_error(verb: str, command: Any, words: Sequence[str], error: Any) -> ConfigError:
    """The error of a command line; `error` is click's, which knows neither settings nor recipes."""
    text = error.format_message().strip().rstrip(".")
    message = f"kava {verb}: {text[:1].lower()}{text[1:]}"
    missing = text.lower().startswith("missing")
    if missing and (unknown := _unknown_flag(command, words)):
        return unknown
    if missing and "--config" in text and (recipe := _recipe(words)):
        return ConfigError(message, f"kava {verb} --config {recipe}")
    if (wrong := _VALUE.match(text)) and (several := _with_commas(command, wrong[1], words)):
        return ConfigError(message, f"several are separated by spaces: {wrong[1]} {' '.join(several.split(','))}")
    return ConfigError(message, f"kava {verb} --help lists the flags")


def _unknown_flag(command: Any, words: Sequence[str]) -> ConfigError | None:
    """The first flag that the verb does not have, which may be the missing one, misspelt; None without one."""
    known = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    flags = [word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
    wrong = next((flag for flag in flags if flag not in [*known, "--help"] and "." not in flag), None)
    return ConfigError(f"unknown flag {wrong!r}", nearest(wrong, known)) if wrong else None


def _with_commas(command: Any, flag: str, words: Sequence[str]) -> str | None:
    """The value with commas of a flag that takes several values; None without one."""
    if not any(flag in parameter.opts and getattr(parameter, "multiple", False) for parameter in command.params):
        return None
    values = [value for name, group in grouped(words, settings=True) for value in (name.partition("=")[2], *group)
              if name.partition("=")[0] == flag]  # fmt: skip
    return next((value for value in values if "," in value), None)


def _recipe(words: Sequence[str]) -> str | None:
    """A word that names a recipe, without the flag for it."""
    from kava.config import list_recipes

    names = [*list_recipes()]
    return next((word for word in words if word in names or word.endswith((".yaml", ".yml"))), None)
