"""Heat maps: shades that follow light and dark, a shape per shade however many cells, panels laid out in inches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from statistics import fmean
from typing import Any

from kava.lab.page.charts import add_panel
from kava.lab.page.figures import MUTED, PALETTE, SHADE, WIDTH, tip

LEVELS = 12  # shades that are drawn
MOST_COLUMNS = 72
BLUE = PALETTE[0]
Value = float | None  # None: no number, drawn grey
Rows = Sequence[Sequence[Value]]  # the first row is drawn on top
Box = tuple[float, float, float, float]  # x, y of a corner, x, y of the one opposite


@dataclass(frozen=True)
class Scale:
    """Maps numbers to shades. With `empty` the lowest shade is none at all."""

    low: float
    high: float
    log: bool = False
    empty: bool = False

    def level(self, value: float) -> int:
        """The shade of a number, from 0 (nothing drawn) to LEVELS."""
        share = float(self._norm(value)) if self.high > self.low else 1.0
        return self._lowest + round(share * (LEVELS - self._lowest))

    def range_of(self, level: int) -> str:
        """The numbers that are drawn in this shade."""
        shares = ((level - self._lowest + half) / (LEVELS - self._lowest) for half in (-0.5, 0.5))
        return " to ".join(f"{self._norm.inverse(min(1.0, max(0.0, share))):.3g}" for share in shares)

    @cached_property
    def _norm(self) -> Any:
        from matplotlib.colors import LogNorm, Normalize

        return (LogNorm if self.log else Normalize)(self.low, self.high, clip=True)

    @property
    def _lowest(self) -> int:
        return 0 if self.empty else 1

    @property
    def words(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"


SHARE = Scale(0.0, 1.0, empty=True)


def scale_of(values: Iterable[Value]) -> Scale:
    """The scale from the least to the largest value; logarithmic where they lie far apart."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    return Scale(low, high, log=low > 0 and high / low > 4)


def heat(axes: Any, rows: Rows, scale: Scale, shade: str = BLUE) -> None:
    """Fills a panel with a cell per number."""
    boxes: dict[int, list[Box]] = {}
    for y, row in enumerate(rows):
        for start, end, level in stretches([-1 if value is None else scale.level(value) for value in row]):
            boxes.setdefault(level, []).append((start, y, end, y + 1))
    for level, inside in sorted(boxes.items()):
        if level:
            fill = (SHADE, "not measured", 1.0) if level < 0 else (shade, scale.range_of(level), level / LEVELS)
            add_rectangles(axes, inside, *fill)
    axes.set_xlim(0, max(map(len, rows), default=0))
    axes.set_ylim(len(rows), 0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom", "top", "right"]].set(visible=True, linewidth=0.4, color=MUTED)


def add_rectangles(axes: Any, boxes: Sequence[Box], colour: str, words: str = "", alpha: float = 1.0) -> None:
    """Draws many rectangles as one shape; one with a tip without the seams that smoothing leaves between neighbours."""
    import numpy as np
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners = np.array([((x, y), (right, y), (right, low), (x, low)) for x, y, right, low in boxes])
    outline = Outline.make_compound_path_from_polys(corners) if boxes else Outline([(0.0, 0.0)])
    patch = PathPatch(outline, facecolor=colour, edgecolor="none", alpha=alpha, zorder=2, antialiased=not words)
    axes.add_patch(patch)
    if words:
        tip(patch, words)


def stretches(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stretches of equal neighbours as (start, end, level)."""
    starts = [i for i in range(len(levels)) if i == 0 or levels[i] != levels[i - 1]]
    return [(start, end, levels[start]) for start, end in pairwise([*starts, len(levels)])]


def thinned_columns(steps: Sequence[Any], rows: Rows, most: int = MOST_COLUMNS) -> tuple[list[Any], list[list[Value]]]:
    """At most `most` columns: means of neighbours, named by the last update of each."""
    size = max(1, ceil(len(steps) / most))
    starts = range(0, len(steps), size)
    return [steps[min(s + size, len(steps)) - 1] for s in starts], [
        [mean_of_known(row[s : s + size]) for s in starts] for row in rows
    ]


def mean_of_known(values: Iterable[Value]) -> Value:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_over_seeds(by_seed: Sequence[Mapping[int, Sequence[Value]]]) -> tuple[list[int], list[list[Value]]]:
    """The updates that all seeds logged, and for each layer its mean over seeds at them."""
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    layers = range(len(by_seed[0][steps[0]]) if steps else 0)
    return steps, [[mean_of_known(logged[step][layer] for logged in by_seed) for step in steps] for layer in layers]


def name_ticks(axis: Any, names: Sequence[Any], most: int = 1000) -> None:
    """Writes the first and every second, fifth, ... name in the middle of its cell: at most `most`."""
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
    margin: float = 0.0  # left of all columns

    @classmethod
    def of_layers(cls, members: int, columns: int, layers: int) -> "Panels":
        """A row of `columns` panels for each member, as high as so many layers need."""
        return cls(members * columns, columns, height=min(2.2 if members < 3 else 1.1, max(0.7, 0.1 * layers)))

    @property
    def width(self) -> float:
        return (WIDTH - self.margin - self.right) / self.columns - self.left

    @property
    def size(self) -> tuple[float, float]:
        return WIDTH, ceil(self.count / self.columns) * (self.above + self.height + self.below)

    def axes(self, figure: Any) -> list[Any]:
        panels = []
        for i in range(self.count):
            row, column = divmod(i, self.columns)
            left = self.margin + self.left + column * (self.left + self.width)
            top = self.above + row * (self.above + self.height + self.below)
            panels.append(add_panel(figure, left, top, self.width, self.height))
        return panels

    def label(self, axes: Any, title: str, x: str, layers: Sequence[Any]) -> None:
        """Writes a panel's title, the label of x and the names of its rows, which are student layers."""
        axes.set_title(title, x=0, pad=4)
        axes.set_xlabel(x, labelpad=2)
        axes.set_ylabel("student layer", labelpad=2)
        name_ticks(axes.yaxis, layers, most=int(self.height / 0.12))

    def draw_over_updates(
        self, axes: Any, title: str, steps: Sequence[int], rows: Rows, layers: Sequence[Any], most: int,
        scale: Scale | None = None, shade: str = BLUE,
    ) -> None:  # fmt: skip
        """Fills a panel with layers over updates, `most` of which are named; the title tells a scale that was not given."""
        steps, rows = thinned_columns(steps, rows)
        fitting = scale or scale_of(cell for row in rows for cell in row)
        heat(axes, rows, fitting, shade)
        places = range(0, len(steps), max(1, ceil(len(steps) / most)))
        axes.set_xticks([place + 0.5 for place in places], [f"{steps[place]:,}" for place in places])
        self.label(axes, title if scale else f"{title}, {fitting.words}", "updates", layers)
