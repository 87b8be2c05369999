"""What the terminal is like: how wide, whether it moves, whether it has colours. Files and pipes get plain whole lines.

Text from files, models and users is shown with its control characters as escapes: nothing in it may move the cursor.
"""

import logging
import os
import re
import sys
from typing import TextIO

WIDTH = 80  # where the terminal does not tell
COLOURS = {"red": "31", "yellow": "33", "green": "32", "dim": "2"}
# C0 and C1 controls but for tab and line feed, line separators, and marks that reverse the direction of writing.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LABEL = re.compile(r"(error|warning|note|hint):")
_COLOUR_OF = {"error": "red", "warning": "yellow"}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads the stream on a screen that lines can be redrawn on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_notebook(stream: TextIO) -> bool:
    """Whether the stream is a Jupyter cell's, which redraws a line after a carriage return."""
    return type(stream).__module__.startswith("ipykernel")


def width(stream: TextIO) -> int:
    """Columns of the stream's terminal; 80 where it has none or does not tell."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (OSError, ValueError):  # no terminal; a stream without a file behind it
        return WIDTH


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the stream (stdout) if it is a terminal; None for files and pipes, where lines may be long."""
    stream = stream or sys.stdout
    return width(stream) if is_terminal(stream) else None


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """The text in a colour, if the stream (stdout) is a terminal; NO_COLOR and TERM=dumb are respected."""
    stream = stream or sys.stdout
    old_windows = os.name == "nt" and "WT_SESSION" not in os.environ  # shows escapes as characters
    if os.environ.get("NO_COLOR") or old_windows or not is_terminal(stream):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def visible(text: str) -> str:
    """The text with every control character as its escape: \\x1b, \\u202e."""
    return _HARMFUL.sub(lambda match: ascii(match[0])[1:-1], text)


def visible_line(text: str) -> str:
    """The same on one line: line feeds and tabs as escapes, too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


class VisibleFormatter(logging.Formatter):
    """A log's lines with control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def tell(line: str) -> None:
    """Prints lines on stderr that fit the terminal; a leading "error:" is red, "warning:" yellow."""
    line = fitted(visible(line), sys.stderr)
    label = _LABEL.match(line)
    if label and (colour := _COLOUR_OF.get(label[1])):
        line = paint(label[0], colour, sys.stderr) + line[label.end() :]
    print(line, file=sys.stderr, flush=True)


def fitted(text: str, stream: TextIO | None = None, indent: str = "    ") -> str:
    """The text with lines longer than the terminal continued on the next one, indented; unchanged for files and pipes."""
    stream = stream or sys.stdout
    if not is_terminal(stream):
        return text
    return "\n".join(_fold(line, width(stream), indent) for line in text.split("\n"))


def _fold(line: str, most: int, indent: str) -> str:
    """Breaks at two spaces, between a table's cells or a log's terms, and only where there are none late in the line at one.

    What stands before a break keeps its place, so that the cells of a table stay below each other.
    """
    if set(line.strip()) <= set("-="):  # a rule
        return line[:most]
    lead = line[: len(line) - len(line.lstrip())]
    lines, rest, start = [], line, len(lead)
    while len(rest) > most:
        place = rest.rfind("  ", start + 1, most + 2)
        if place < most // 2:  # else the line would be half empty
            place = rest.rfind(" ", start + 1, most + 1)
        if place < 0:  # one long word, such as a path
            place = rest.find(" ", most)
        if place < 0:
            break
        lines.append(rest[:place].rstrip())
        rest, start = lead + indent + rest[place:].lstrip(), len(lead + indent)
    return "\n".join([*lines, rest])
