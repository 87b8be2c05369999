"""Flags that take several values: `--questions a b c` is read as `--questions a --questions b --questions c`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

_FLAG = re.compile(r"--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)
_SETTING = re.compile(r"[a-z]\w*(\.\w+)+=.*", re.DOTALL)


class ListFlagCommand(TyperCommand):
    """A verb whose list flags take all words up to the next flag; a word such as "-3+4?" is one of them.

    Where the verb takes recipe settings, section.key=value ends a list as well.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        return super().parse_args(ctx, spread(args, lists, self.context_settings.get("allow_extra_args", False)))


def app_of(verb: str, function: Any, **context: Any) -> typer.Typer:
    """The `app` of a verb's file, with list flags as above; `context` may be OVERRIDES."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(verb, cls=ListFlagCommand, context_settings={"help_option_names": ["--help", "-h"], **context})(
        function
    )
    return app


def spread(words: Sequence[str], lists: Collection[str], settings: bool = False) -> list[str]:
    """`words` with every value behind a flag of `lists` glued to it; after "--" nothing is a flag any more."""
    found: list[str] = []
    current: str | None = None
    literal = False
    for i, word in enumerate(words):
        if word == "--" and current and not literal:
            literal = True
        elif not literal and (word == "-h" or _FLAG.fullmatch(word)):
            name, equals, _ = word.partition("=")
            current = name if name in lists else None
            bare = current is None or equals or i + 1 == len(words) or _FLAG.fullmatch(words[i + 1])
            found += [word] if bare else []
        elif settings and not literal and _SETTING.fullmatch(word):
            current = None
            found.append(word)
        else:
            found.append(f"{current}={word}" if current else word)
    return found
