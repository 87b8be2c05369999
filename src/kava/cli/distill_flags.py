"""The words of a `kava distill` command line as settings of a recipe, by the table of flags.

A flag is written with underscores or dashes (`cli/main.py` makes them underscores), as `--flag value` or `--flag=value`;
settings of the recipe stand between flags as section.key=value.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kava.cli.distill_table import BY_NAME, REFUSED, Flag
from kava.cli.list_flags import grouped
from kava.config.text import parse_text
from kava.errors import ConfigError
from kava.registry import nearest

_HOMES = {"system.gradient_accumulation_steps": "training.gradient_accumulation_steps"}  # one key in two places
_BOOLEANS = ("true", "false", "0", "1", "yes", "no")


@dataclass(frozen=True)
class FlagSettings:
    """Settings of the recipe by key, as text: those `typed`, and what their flags bring along (see Flag).

    `implied` holds unless typed otherwise; `teacher` holds where the run loads one separate teacher. `mixture` maps a typed
    key to the flag that set it and what that flag sets instead where there are several teachers.
    """

    typed: dict[str, str] = field(default_factory=dict)
    implied: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)
    mixture: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_words(words: Sequence[str], declared: Sequence[str] = ()) -> FlagSettings:
    """The settings that `words` stand for. An unknown flag, or a key set twice to different values, is an error.

    `declared` are the verb's own flags, for hints.
    """
    result = FlagSettings()
    set_by: dict[str, str] = {}
    for word, values in grouped(words, settings=True):
        if not word:
            _refuse_stray(values)
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        flag = Flag(name, _HOMES.get(name, name)) if "." in name else _known(name, declared)
        spelled = name if "." in name else f"--{name}"
        settings = _settings(spelled, flag, _value(spelled, flag, [text, *values] if equals else values, bool(equals)))
        result.implied.update(flag.along)
        if flag.mixture is not None:
            result.mixture[next(iter(settings))] = (spelled, flag.mixture)
        if flag.teacher is not None:
            result.teacher[flag.teacher] = next(iter(settings.values()))
        for key, new in settings.items():
            if key in result.typed and _data(result.typed[key]) != _data(new):
                raise set_twice(key, result.typed[key], set_by[key], new, spelled)
            result.typed[key], set_by[key] = new, spelled
    return result


def set_twice(key: str, first: str, first_flag: str, second: str, second_flag: str) -> ConfigError:
    message = f"command line: {key} is set twice, to {first} by {first_flag} and to {second} by {second_flag}"
    return ConfigError(message, "leave one of them out")


def _refuse_stray(words: Sequence[str]) -> None:
    if words:
        raise ConfigError(f"command line: unexpected {words[0]!r}", "settings are written section.key=value")


def _value(spelled: str, flag: Flag, words: list[str], attached: bool) -> str:
    """The value of a flag or key from the words after it; a list flag's is JSON."""
    if flag.switch is not None:
        if attached or (words and words[0].lower() in _BOOLEANS):
            raise ConfigError(f"{spelled} is a switch and takes no value", "give it alone, or leave it out")
        _refuse_stray(words)
        return flag.switch
    if not words:
        raise ConfigError(f"command line: {spelled} has no value", f"write {spelled} VALUE")
    if flag.many:
        return json.dumps([None if word == "None" else word for word in words])
    _refuse_stray(words[1:])
    return "null" if words[0] == "None" and isinstance(flag.sets, str) else words[0]


def _known(name: str, declared: Sequence[str]) -> Flag:
    if name in REFUSED:
        raise ConfigError(f"--{name} is not supported: {REFUSED[name]}")
    if name not in BY_NAME:
        names = [*BY_NAME, *(word.removeprefix("--") for word in declared)]
        raise ConfigError(f"unknown flag '--{name}'", nearest(f"--{name}", [f"--{known}" for known in names]))
    return BY_NAME[name]


def _settings(spelled: str, flag: Flag, value: str) -> Mapping[str, str]:
    if value in flag.refused:
        raise ConfigError(f"{spelled} {value} is not supported: {flag.refused[value]}")
    if isinstance(flag.sets, str):
        return {flag.sets: flag.values.get(value, value)}
    try:
        return flag.sets(value)
    except ConfigError as error:
        raise ConfigError(f"{spelled}: {error.message}", error.hint) from error


def _data(text: str) -> object:
    """The value as YAML reads it: 5e-5 and 0.00005 are equal."""
    return parse_text(text, "command line") if text[:1] not in "[{*&!|>%@`'\"" else text
