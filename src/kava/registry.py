"""Classes by the names that a recipe writes: a short name from a table, or "package.module:Name" from anywhere."""

import difflib
import importlib
import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from kava.errors import ConfigError

T = TypeVar("T")
log = logging.getLogger("kava.registry")


_said: set[str] = set()


def say_once(logger: logging.Logger, line: str) -> None:
    """Warns with this line, once in a process."""
    if line not in _said:
        _said.add(line)
        logger.warning(line)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint with the closest known word, or with all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(known))


def check_known(kind: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is not one of `known`."""
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}", "known: " + ", ".join(known))


def names_a_class(name: str) -> bool:
    """Whether a name has the form "package.module:Name"."""
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), attribute))


def lookup(table: Mapping[str, type[T]], name: str, kind: str) -> type[T]:
    """The class called `name`: from `table`, or imported when it is written as "package.module:Name"."""
    if name in table:
        return table[name]
    if not names_a_class(name):
        raise ConfigError(f"unknown {kind} {name!r}", nearest(name, list(table)))
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{kind} {name!r} names no class", "write package.module:Name")
    say_once(log, f"{kind} {name}: code of the module {module_name} runs")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{kind} {name!r}: cannot import {module_name!r} ({error})", "check PYTHONPATH") from error
    attribute_value: Any = getattr(module, attribute, None)
    if not isinstance(attribute_value, type):
        raise ConfigError(f"{kind} {name!r}: {module_name!r} has no class {attribute!r}")
    return attribute_value
