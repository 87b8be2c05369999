"""Tables in plain ASCII, and the numbers in their cells."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], header: Sequence[str], left: int | None = None, foot: int = 0) -> str:
    """Left-aligned columns with dashes under each header; the last column is as long as it is.

    With `left`, only so many columns are left-aligned and the others, numbers, right-aligned under one rule of the table's
    whole width; a second rule separates the last `foot` rows.
    """
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


def number(value: float | None, digits: int = 1) -> str:
    """`value` with so many decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(fraction: float | None) -> str:
    """A fraction in percent, without the sign; a dash for None."""
    return number(None if fraction is None else 100 * fraction)
