"""A curve in plain characters, for a terminal."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
MARK = "*"


def chart(points: Sequence[Point], columns: int = 60, rows: int = 8, form: str = ".4g") -> str:
    """The points (x, y) from left to right, several of one column as their mean; values that are no numbers are left out
    and counted below. "" where there is nothing to draw."""
    usable = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not usable:
        return ""
    left, right = min(x for x, _ in usable), max(x for x, _ in usable)
    cells: list[list[float]] = [[] for _ in range(columns)]
    for x, y in usable:
        cells[_place(x, left, right, columns)].append(y)
    means = [sum(cell) / len(cell) if cell else None for cell in cells]
    drawn = [mean for mean in means if mean is not None]
    low, high = min(drawn), max(drawn)
    grid = [[" "] * columns for _ in range(rows)]
    for column, mean in enumerate(means):
        if mean is not None:
            row = rows // 2 if low == high else rows - 1 - _place(mean, low, high, rows)
            grid[row][column] = MARK
    names = {0: format(high, form), rows - 1: format(low, form)} if low != high else {rows // 2: format(low, form)}
    margin = max(map(len, names.values()))
    lines = [f"{names.get(number, ''):>{margin}} |{''.join(line).rstrip()}" for number, line in enumerate(grid)]
    first, last = format(left, "g"), format(right, "g")
    axis = first if left == right else first + last.rjust(columns - len(first))
    below = [f"{'':>{margin}} +{'-' * columns}", f"{'':>{margin}}  {axis}"]
    left_out = len(points) - len(usable)
    note = [f"{left_out} value{'' if left_out == 1 else 's'} not finite, left out"] if left_out else []
    return "\n".join([*lines, *below, *note])


def _place(value: float, low: float, high: float, count: int) -> int:
    """In which of `count` equal parts of low .. high the value lies."""
    return 0 if low == high else min(count - 1, int((value - low) / (high - low) * count))
