"""Parts of a page as records; page.html.j2 has a macro for each, of the class's name."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kava.lab.analysis.study import Study, StudyMember, panels
from kava.lab.page.formats import DASH

_NUMBER = re.compile(rf"[-+<\u2212]?\s?\d.*|{DASH}|")


@dataclass(frozen=True)
class Heading:
    """A row of a table that names the rows below it."""

    heading: str


Row = Sequence[Any] | Heading  # cells are text or Markup


@dataclass(frozen=True)
class Table:
    """Rows in a box that scrolls when it is too wide; with `wrap` the first column may be broken into lines."""

    header: Sequence[Any]
    rows: Sequence[Row]
    label: str = ""
    wrap: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone, except the first; they are set to the right."""
        rows = [row for row in self.rows if not isinstance(row, Heading)]
        return [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(self.header))]


@dataclass(frozen=True)
class Paragraph:
    """Text; `style` is a CSS class of page.css."""

    content: str
    style: str = ""


@dataclass(frozen=True)
class Missing:
    """One line for data that does not exist, and the command that makes it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Subheading:
    title: str


@dataclass(frozen=True)
class Facts:
    """Names and what they are, side by side."""

    rows: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class CommandLines:
    lines: Sequence[str]


@dataclass(frozen=True)
class Plot:
    """A figure: `draw` fills an empty matplotlib figure of `size` inches; `rows` hold its numbers."""

    name: str
    title: str
    caption: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Any], None]
    header: Sequence[str]
    rows: Sequence[Row]

    @property
    def numbers(self) -> "Details":
        return Details("Numbers behind this figure", (Table(self.header, self.rows, self.title),))


@dataclass(frozen=True)
class Details:
    """Parts that are folded away until the summary is clicked."""

    summary: str
    parts: Sequence[Table | Paragraph]


Block = Table | Paragraph | Missing | Subheading | Facts | CommandLines | Plot | Details


@dataclass(frozen=True)
class PageSection:
    """A heading of the page and the parts below it."""

    name: str
    title: str
    parts: tuple[Block, ...]


def titled(parts: Mapping[str, Iterable[Block]]) -> list[Block]:
    """Parts below their subheadings; subheadings without parts are left out, the subheading "" is not written."""
    filled = {title: blocks for title, inside in parts.items() if (blocks := list(inside))}
    return [part for title, inside in filled.items() for part in ([Subheading(title)] if title else []) + inside]


def section_by_set(
    study: Study, name: str, title: str, parts_of: Callable[[Study, str], Iterable[Block]], nothing: Missing
) -> PageSection:
    """The section with the parts that `parts_of` makes for each set; `nothing` where there are none."""
    parts = tuple(part for label in study.sets for part in parts_of(study, label))
    return PageSection(name, title, parts or (nothing,))


def rows_by_group(members: Sequence[StudyMember], row_of: Callable[[StudyMember], Row]) -> list[Row]:
    """A row per member, below its group's heading where there are several groups."""
    rows: list[Row] = []
    for group in panels(members):
        rows += [Heading(group.title)] if group.title else []
        rows += [row_of(member) for member in group.members]
    return rows


def _is_number(cell: Any) -> bool:
    return bool(_NUMBER.fullmatch(re.sub(r"<[^>]*>", "", cell) if isinstance(cell, Markup) else str(cell)))
