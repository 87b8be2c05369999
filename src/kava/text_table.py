"""Tables in plain ASCII, and the numbers in their cells."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from kava.console import visible_line

GAP = 2  # spaces between columns
NARROWEST = 8  # characters of a column whose cells are continued


def table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    left: int | None = None,
    foot: int = 0,
    width: int | None = None,
) -> str:
    """Left-aligned columns with dashes under each header; the last column is as long as it is.

    `width`: cells of the widest columns are continued on the next line, so that lines have no more columns.
    With `left`, only so many columns are left-aligned and the others, numbers, right-aligned under one rule of the table's
    whole width; a second rule separates the last `foot` rows.
    """
    rows = [[visible_line(word) for word in row] for row in rows]
    if width is not None:
        rows = _folded(rows, header, width)
    lines = [list(header), ["-" * len(word) for word in header], *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = len(header) if left is None else left
    texts = [
        "  ".join(word.ljust(w) if i < aligned else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]  # fmt: skip
    rule = "-" * len(texts[0])
    if left is not None:
        texts[1] = rule
    if foot:
        texts[-foot:-foot] = [rule]
    return "\n".join(text.rstrip() for text in texts)


def _folded(rows: Sequence[Sequence[str]], header: Sequence[str], width: int) -> list[list[str]]:
    """The rows with long cells on several lines, the widest columns first."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    least = [max(len(word), NARROWEST) for word in header]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        spare = [column for column in range(len(widths)) if widths[column] > least[column]]
        if not spare:
            break
        widths[max(spare, key=lambda column: widths[column])] -= 1
    folded = []
    for row in rows:
        cells = [_wrapped(cell, most) for cell, most in zip(row, widths, strict=True)]
        folded += [list(line) for line in zip_longest(*cells, fillvalue="")]
    return folded


def _wrapped(cell: str, most: int) -> list[str]:
    """A cell on lines of at most so many characters; one that fits is kept with its spaces."""
    return [cell] if len(cell) <= most else textwrap.wrap(cell, most, break_on_hyphens=False)


def number(value: float | None, digits: int = 1) -> str:
    """`value` with so many decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(fraction: float | None) -> str:
    """A fraction in percent, without the sign; a dash for None."""
    return number(None if fraction is None else 100 * fraction)
