"""Pieces of a page: escaped text, tables, and numbers as the page writes them. What is missing is a dash, never 0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

NONE = "\u2013"  # an en dash
_NUMBER = re.compile(rf"[-+<\u2212]?\s?\d.*|{NONE}|")


class Html(str):
    """Text that is markup already."""


@dataclass(frozen=True)
class Heading:
    """A row of a table that names the rows below it."""

    text: str


Row = Sequence[Any] | Heading


def text(content: Any) -> Html:
    """`content` for a page: escaped, unless it is markup."""
    return content if isinstance(content, Html) else Html(escape(str(content)))


def tag(name: str, content: Any = "", **attributes: Any) -> Html:
    """<name key="value">content</name>; `class_` stands for class, other underscores for dashes."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for key, v in attributes.items() if v != ""
    )
    return Html(f"<{name}{words}>{text(content)}</{name}>")


def join(parts: Iterable[Any], between: str = "\n") -> Html:
    return Html(between.join(text(part) for part in parts))


def paragraph(*parts: Any, class_: str = "") -> Html:
    return tag("p", join(parts, " "), **({"class_": class_} if class_ else {}))


def code(content: Any) -> Html:
    return tag("code", content)


def missing(what: str, command: str = "") -> Html:
    """One line for data that is not there, and the command that makes it."""
    return paragraph(what, *([Html("Made by"), Html(code(command) + ".")] if command else []), class_="missing")


def table(header: Sequence[Any], rows: Sequence[Row], label: str = "", words: bool = False) -> Html:
    """A table in a box of its own that scrolls when it is too wide; columns of numbers are set to the right.

    With `words` the first column is text that may be broken into lines.
    """
    cells = [row for row in rows if not isinstance(row, Heading)]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    kinds = [' class="n"' if yes and i else "" for i, yes in enumerate(numeric)]
    head = "".join(f'<th scope="col"{kind}>{text(cell)}</th>' for kind, cell in zip(kinds, header, strict=True))
    lines = []
    for row in rows:
        if isinstance(row, Heading):
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(header)}">{text(row.text)}</th></tr>')
            continue
        first, *rest = row
        inner = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row">{text(first)}</th>{inner}</tr>')
    body = "\n".join(lines)
    name = (f' aria-label="{escape(label)}"' if label else "") + (' class="words"' if words else "")
    return Html(
        f'<div class="scroll" tabindex="0"><table{name}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def details(summary: str, *parts: Any) -> Html:
    return Html(f"<details><summary>{text(summary)}</summary>\n{join(parts)}\n</details>")


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}"


def mean_sd(mean: float | None, sd: float | None) -> str:
    """93.1 (0.4): percent, and the sample standard deviation where there is one."""
    return percent(mean) + ("" if sd is None else f" ({percent(sd)})")


def span(interval: tuple[float, float, str] | None) -> str:
    """The two ends of an interval in percent."""
    return NONE if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def number(value: Any, digits: int = 4) -> str:
    """Significant digits, without exponents where they can be avoided; a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def seconds(value: float | None) -> str:
    """12 s, 3 min 18 s, 2 h 05 min."""
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seed_name(seed: int | None) -> str:
    return NONE if seed is None else str(seed)


def counted(count: int, noun: str) -> str:
    """1 seed, 5 seeds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[Any]) -> str:
    """a, b and c."""
    parts = [str(word) for word in words]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _is_number(cell: Any) -> bool:
    return bool(_NUMBER.fullmatch(re.sub(r"<[^>]*>", "", cell) if isinstance(cell, Html) else str(cell)))
