"""Heat maps: shades that follow the page's theme, few shapes however many cells, panels set out in inches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any

from kava.lab.page.figures import LIGHT, MUTED, PALETTE, WIDTH, tip

LEVELS = 12  # shades that are drawn
MOST_COLUMNS = 72
BLUE = PALETTE[0][0]
Value = float | None  # None: there is no number, drawn grey
Rows = Sequence[Sequence[Value]]  # the first row is drawn on top
Box = tuple[float, float, float, float]  # x, y of a corner, x, y of the one opposite


@dataclass(frozen=True)
class Scale:
    """Numbers to shades. With `empty` the lowest shade is none at all."""

    low: float
    high: float
    log: bool = False
    empty: bool = False

    def level(self, value: float) -> int:
        """0 (nothing drawn) to LEVELS."""
        low, high, one = (
            (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        place = min(1.0, max(0.0, (one - low) / (high - low))) if high > low else 1.0
        first = 0 if self.empty else 1
        return first + round(place * (LEVELS - first))

    @property
    def words(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"


SHARE = Scale(0.0, 1.0, empty=True)


def scale_of(values: Iterable[Value]) -> Scale:
    """From the least to the largest; logarithmic where they lie far apart."""
    known = [one for one in values if one is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    return Scale(low, high, log=low > 0 and high / low > 4)


def heat(one: Any, rows: Rows, scale: Scale, shade: str = BLUE) -> None:
    """Fills a panel with a cell per number."""
    width, height = max(map(len, rows), default=0), len(rows)
    boxes: dict[int, list[Box]] = {}
    for y, row in enumerate(rows):
        levels = [-1 if value is None else scale.level(value) for value in row]
        for start, end, level in _runs(levels):
            boxes.setdefault(level, []).append((start, y, end, y + 1))
    for level, found in sorted(boxes.items()):
        if level:
            grey = level < 0
            patch = rectangles(
                found, LIGHT["shade"] if grey else shade, alpha=1.0 if grey else level / LEVELS, sharp=True
            )
            one.add_patch(patch)
            tip(patch, "not measured" if grey else _between(scale, level))
    one.set_xlim(0, width)
    one.set_ylim(height, 0)
    frame(one)


def frame(one: Any) -> None:
    """A thin line around a panel that has no axes."""
    one.grid(visible=False)
    one.tick_params(length=0)
    one.spines[["left", "bottom", "top", "right"]].set(visible=True, linewidth=0.4, color=MUTED)


def rectangles(boxes: Sequence[Box], colour: str, alpha: float = 1.0, sharp: bool = False) -> Any:
    """Many rectangles as one shape; `sharp`: without the seams that smoothing leaves between neighbours."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners: list[tuple[float, float]] = []
    codes: list[Any] = []
    for x, y, right, low in boxes:
        corners += [(x, y), (right, y), (right, low), (x, low), (x, y)]
        codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    outline = Outline(corners, codes) if corners else Outline([(0.0, 0.0)])
    return PathPatch(outline, facecolor=colour, edgecolor="none", alpha=alpha, zorder=2, antialiased=not sharp)


def _runs(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours of one level together: (start, end, level)."""
    found: list[tuple[int, int, int]] = []
    for place, level in enumerate(levels):
        if found and found[-1][2] == level:
            found[-1] = (found[-1][0], place + 1, level)
        else:
            found.append((place, place + 1, level))
    return found


def _between(scale: Scale, level: int) -> str:
    """The numbers that are drawn in this shade."""
    first = 0 if scale.empty else 1
    ends = []
    for half in (-0.5, 0.5):
        place = min(1.0, max(0.0, (level - first + half) / (LEVELS - first)))
        low, high = (math.log(scale.low), math.log(scale.high)) if scale.log else (scale.low, scale.high)
        ends.append(low + place * (high - low))
    return " to ".join(f"{math.exp(end) if scale.log else end:.3g}" for end in ends)


def thinned_columns(steps: Sequence[int], rows: Rows) -> tuple[list[int], list[list[Value]]]:
    """At most 72 columns: means of neighbours, named by the last update of each."""
    size = max(1, ceil(len(steps) / MOST_COLUMNS))
    starts = range(0, len(steps), size)
    return [steps[min(s + size, len(steps)) - 1] for s in starts], [
        [_mean(row[s : s + size]) for s in starts] for row in rows
    ]


def _mean(values: Sequence[Value]) -> Value:
    known = [one for one in values if one is not None]
    return fmean(known) if known else None


def step_ticks(one: Any, steps: Sequence[int], most: int) -> None:
    """Up to `most` updates below their columns."""
    every = max(1, ceil(len(steps) / most))
    places = range(0, len(steps), every)
    one.set_xticks([place + 0.5 for place in places], [f"{steps[place]:,}" for place in places])


def name_ticks(axis: Any, names: Sequence[Any], most: int) -> None:
    """The first, and every second, fifth, ... name in the middle of its cell: at most `most`."""
    every = next((n for n in (1, 2, 5, 10, 20, 50) if len(names) <= n * most), 100)
    axis.set_ticks([place + 0.5 for place in range(0, len(names), every)], list(map(str, names[::every])))


@dataclass(frozen=True)
class Panels:
    """`count` panels in rows of `columns`; all sizes in inches."""

    count: int
    columns: int
    height: float
    left: float = 0.46
    above: float = 0.3
    below: float = 0.42
    right: float = 0.06

    @property
    def width(self) -> float:
        return (WIDTH - self.right) / self.columns - self.left

    @property
    def size(self) -> tuple[float, float]:
        return WIDTH, ceil(self.count / self.columns) * (self.above + self.height + self.below)

    def axes(self, figure: Any) -> list[Any]:
        width, height = self.size
        found = []
        for i in range(self.count):
            x, y = i % self.columns, i // self.columns
            left = self.left + x * (self.left + self.width)
            bottom = height - y * (self.above + self.height + self.below) - self.above - self.height
            found.append(figure.add_axes((left / width, bottom / height, self.width / width, self.height / height)))
        return found
