"""List flags: `--questions a b c` takes every word up to the next flag, or up to section.key=value where a verb takes it."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from typer.core import TyperCommand

_FLAG = re.compile(r"-h|--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)
_SETTING = re.compile(r"[A-Za-z][\w-]*(\.[\w-]+)+=.*", re.DOTALL)


class ListFlagCommand(TyperCommand):
    """A verb whose list flags take all words up to the next flag; a word such as "-3+4?" is one of them.

    Where words without a flag are the verb's own list (FILE ...), a list flag takes one word and is repeated.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        if any(parameter.nargs == -1 for parameter in self.params):
            lists = set()
        return super().parse_args(ctx, spread(args, lists, self.context_settings.get("allow_extra_args", False)))


def grouped(words: Sequence[str], settings: bool) -> list[tuple[str, list[str]]]:
    """Each flag (with `settings`, also each section.key=value) and the words after it; first "" and what is before them.

    After "--" nothing is a flag any more; that word itself is kept.
    """
    groups: list[tuple[str, list[str]]] = [("", [])]
    literal = False
    for word in words:
        literal = literal or word == "--"
        if not literal and (_FLAG.fullmatch(word) or (settings and _SETTING.fullmatch(word))):
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups


def spread(words: Sequence[str], lists: Collection[str], settings: bool = False) -> list[str]:
    """`words` with every value of a flag in `lists` attached to it: `--q a b` becomes `--q=a --q=b`, as click reads lists."""
    result: list[str] = []
    for flag, values in grouped(words, settings):
        name, equals, _ = flag.partition("=")
        if name not in lists:
            result += [flag, *values] if flag else values
            continue
        if "--" in values:
            values.remove("--")
        result += [flag] if equals or not values else []
        result += [f"{name}={value}" for value in values]
    return result
