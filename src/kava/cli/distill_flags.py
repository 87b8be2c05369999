"""A command line of `kava distill` to settings, by the table of flags.

A flag may be written with underscores or dashes (`cli/main.py` makes them underscores), as `--flag value` or
`--flag=value`; settings of the recipe stand between them as section.key=value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kava.cli.distill_table import BY_NAME, REFUSED, Flag
from kava.config.text import parse_text
from kava.errors import ConfigError
from kava.registry import nearest

_HOMES = {"system.gradient_accumulation_steps": "training.gradient_accumulation_steps"}  # one key in two places
_SETTING = re.compile(r"[a-z]\w*(\.\w+)+=.*", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What a command line says: settings by key, as text. `along` and `teacher` come along with flags (see Flag).

    `mixture` is key -> the flag that set it and what it sets where there are several teachers.
    """

    given: dict[str, str] = field(default_factory=dict)
    along: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)
    mixture: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_words(words: Sequence[str], declared: Sequence[str] = ()) -> Asked:
    """The settings that `words` stand for; the same one twice with different values, or an unknown flag, is an error.

    `declared` are names of the verb's own flags, for hints.
    """
    asked = Asked()
    said: dict[str, str] = {}
    for spelled, flag, text in _pairs(list(words), declared):
        if isinstance(flag, str):
            settings: Mapping[str, str] = {_HOMES.get(flag, flag): text}
        else:
            settings = _settings(spelled, flag, text)
            asked.along.update(flag.along)
            if flag.mixture is not None:
                asked.mixture[next(iter(settings))] = (spelled, flag.mixture)
            if flag.teacher is not None:
                asked.teacher[flag.teacher] = next(iter(settings.values()))
        for key, value in settings.items():
            if key in asked.given and _data(asked.given[key]) != _data(value):
                raise set_twice(key, asked.given[key], said[key], value, spelled)
            asked.given[key] = value
            said[key] = spelled
    return asked


def set_twice(key: str, one: str, by: str, other: str, spelled: str) -> ConfigError:
    return ConfigError(
        f"command line: {key} is set twice, to {one} by {by} and to {other} by {spelled}", "leave one of them out"
    )


def _pairs(words: list[str], declared: Sequence[str]) -> Iterator[tuple[str, Flag | str, str]]:
    """Each flag (or recipe key) of the command line as it was spelled, what it is, and its value."""
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        flag: Flag | str
        if "." in name and (equals or word.startswith("--")):
            spelled, flag = name, name
        elif word.startswith("--"):
            spelled, flag = f"--{name}", _known(name, declared)
        else:
            raise ConfigError(f"command line: unexpected {word!r}", "settings are written section.key=value")
        if not isinstance(flag, str) and flag.switch is not None:
            if equals or (words and words[0].lower() in ("true", "false", "0", "1", "yes", "no")):
                raise ConfigError(f"{spelled} is a switch and takes no value", "give it alone, or leave it out")
            text = flag.switch
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"command line: {spelled} has no value", f"write {spelled} VALUE")
            text = words.pop(0)
        if not isinstance(flag, str) and flag.many:
            values = [text]
            while words and not words[0].startswith("--") and not _SETTING.fullmatch(words[0]):
                values.append(words.pop(0))
            text = json.dumps([None if value == "None" else value for value in values])
        yield spelled, flag, "null" if text == "None" and not _keeps_none(flag) else text


def _keeps_none(flag: Flag | str) -> bool:
    return isinstance(flag, Flag) and callable(flag.sets)


def _known(name: str, declared: Sequence[str]) -> Flag:
    if name in REFUSED:
        raise ConfigError(f"--{name} is not supported: {REFUSED[name]}")
    if name not in BY_NAME:
        names = [*BY_NAME, *(word.removeprefix("--") for word in declared)]
        raise ConfigError(f"unknown flag '--{name}'", nearest(f"--{name}", [f"--{one}" for one in names]))
    return BY_NAME[name]


def _settings(spelled: str, flag: Flag, text: str) -> Mapping[str, str]:
    if text in flag.refused:
        raise ConfigError(f"{spelled} {text} is not supported: {flag.refused[text]}")
    if isinstance(flag.sets, str):
        return {flag.sets: flag.values.get(text, text)}
    try:
        return flag.sets(text)
    except ConfigError as error:
        raise ConfigError(f"{spelled}: {error.message}", error.hint) from error


def _data(text: str) -> object:
    """5e-5 and 0.00005 are one value."""
    return parse_text(text, "command line") if text[:1] not in "[{*&!|>%@`'\"" else text
