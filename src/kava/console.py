"""What the terminal is like: how wide, whether it moves, whether it has colours. Files and pipes get plain whole lines."""

import os
import re
import sys
import textwrap
from typing import TextIO

WIDTH = 80  # where the terminal does not tell
COLOURS = {"red": "31", "yellow": "33", "green": "32", "dim": "2"}
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


def tell(line: str) -> None:
    """Prints a line on stderr; a leading "error:" is red, "warning:" yellow."""
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
    """Breaks at two spaces, between a table's cells or a log's terms, and only where there are none at one."""
    if len(line) <= most:
        return line
    lead = line[: len(line) - len(line.lstrip())]
    parts, lines = re.split(r"(?<=\S)  +", line), [""]
    for part in parts:
        longer = f"{lines[-1]}  {part}" if lines[-1] else part
        if len(longer) <= most or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(lead + indent + part)
    whole = (
        textwrap.wrap(
            text, most, subsequent_indent=lead + indent, break_long_words=False, break_on_hyphens=False,
            replace_whitespace=False, drop_whitespace=True,
        )
        if len(text) > most else [text]
        for text in lines
    )  # fmt: skip
    return "\n".join(text for texts in whole for text in texts)
