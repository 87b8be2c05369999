"""Parts of figures: a grid of panels with a column per group of members, curves over seeds, labels that do not overlap."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, log10
from statistics import fmean
from types import MappingProxyType
from typing import Any

from kava.lab.analysis.study import Group, StudyMember
from kava.lab.page.figures import INK, SHADE, WIDTH, colour, plot_with_tip

Points = Sequence[tuple[float, float]]
Lines = Mapping[str, Mapping[str, Points]]  # member's label -> seed's name -> points
LETTER = 0.063  # inches that a letter of a label takes, at most
LONGEST = 36  # letters of a name in a figure
LINE = 0.13  # inches from one line of a legend to the next
LEFT, RIGHT, BOTTOM, GAP = 0.42, 0.08, 0.42, 0.32


def add_panel(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes whose upper left corner is `left`, `top` inches from the figure's."""
    across, high = figure.get_size_inches()
    return figure.add_axes((left / across, (high - top - height) / high, width / across, height / high))


class Grid:
    """A row of panels per measure and a column per group; with one group, the measures two by two. Sizes in inches.

    `titles` are those of the measures, by a key.
    """

    def __init__(
        self, titles: Mapping[str, str], groups: Sequence[Group], height: float = 1.35, xlabel: str = ""
    ) -> None:
        self.titles, self.groups, self.height, self.xlabel = titles, groups, height, xlabel
        several = len(groups) > 1
        self.columns = len(groups) if several else min(2, len(titles))
        self.rows = len(titles) if several else ceil(len(titles) / self.columns)
        across = max(WIDTH, 1.9 * self.columns)
        self.between = 0.3 if several else 0.5  # measures side by side have their own numbers on y
        self.width = (across - LEFT - RIGHT - self.between * (self.columns - 1)) / self.columns
        lines = max(ceil(len(group.members) / self._legend_columns(group)) for group in groups)
        self.above = (0.24 if several else 0.05) + lines * LINE + 0.3  # group's title, legend, first row's title
        self.size = across, self.above + self.rows * (height + GAP) - GAP + BOTTOM

    def _legend_columns(self, group: Group) -> int:
        longest = letters(group.members) + 0.45
        room = self.width if len(self.groups) > 1 else WIDTH - LEFT
        return max(1, min(len(group.members), int(room / longest)))

    def panels(self, figure: Any) -> Iterator[tuple[Any, str, Group]]:
        """Axes to fill, for each measure those of all groups, which then get the same y; only the first shows its numbers."""
        several = len(self.groups) > 1
        for column, group in enumerate(self.groups):
            self._add_legend(figure, group, self._left(column))
        for index, (key, title) in enumerate(self.titles.items()):
            row = []
            for column, group in enumerate(self.groups):
                x, y = (column, index) if several else (index % self.columns, index // self.columns)
                top = self.above + y * (self.height + GAP)
                axes = add_panel(figure, self._left(x), top, self.width, self.height)
                if x == 0 or not several:
                    axes.set_title(title, x=0, pad=5)
                if y == self.rows - 1 or (not several and index + self.columns >= len(self.titles)):
                    axes.set_xlabel(self.xlabel, labelpad=2)
                elif self.xlabel:  # the panels below have the same x
                    axes.tick_params(axis="x", labelbottom=False)
                row.append(axes)
                yield axes, key, group
            limits = [axes.get_ylim() for axes in row]
            for axes in row:
                axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            for axes in row[1:]:
                axes.tick_params(axis="y", labelleft=False)
                axes.spines["left"].set_visible(False)

    def _left(self, column: int) -> float:
        return LEFT + column * (self.width + self.between)

    def _add_legend(self, figure: Any, group: Group, left: float) -> None:
        """The group's title where there are several, and the names of its members."""
        from matplotlib.lines import Line2D

        width, height = self.size
        top = height - 0.03
        if len(self.groups) > 1:
            figure.text(left / width, top / height, group.title, va="top", color=INK, weight="bold", size=7.6)
            top -= 0.2
        handles = [Line2D([], [], label=short(member.label), **line_style(member)) for member in group.members]
        place = {"loc": "upper left", "bbox_to_anchor": (left / width, top / height)}
        if handles:
            figure.legend(handles=handles, ncols=self._legend_columns(group), columnspacing=1.2, **place)


def short(label: str, most: int = LONGEST) -> str:
    """A member's name for a figure."""
    return label if len(label) <= most else label[: most - 1] + "\u2026"


def visible_token(token: str) -> str:
    """A token's text, its white space replaced by visible signs where it has nothing else."""
    text = token.replace("\u0120", " ").replace("\u2581", " ").replace("\n", "\\n")
    return text.strip() or text.replace(" ", "\u2423")


def letters(members: Iterable[StudyMember]) -> float:
    """Inches that the longest of their names takes."""
    return LETTER * max((len(short(member.label)) for member in members), default=1)


def line_style(member: StudyMember, size: float = 3.6) -> dict[str, Any]:
    style = {"linestyle": member.look.dash, "marker": member.look.marker, "markersize": size}
    return style | {"color": colour(member.look), "markeredgecolor": "none"}


def curves(
    axes: Any, group: Group, lines: Lines, log: bool = False, marks: int = 4, cut: Lines = MappingProxyType({})
) -> None:
    """Draws a thin line per seed, their mean thick with `marks` markers, and other groups' means in grey.

    `cut` are the lines of runs that were cut short: drawn thin, in no mean.
    """
    inside = {member.label for member in group.members}
    for label, seeds in lines.items():
        mean = mean_line(seeds)
        if label not in inside and mean:
            axes.plot(*zip(*mean, strict=True), color=SHADE, linewidth=0.7, zorder=1.5)
    for member in group.members:
        seeds = lines.get(member.label, {})
        style = line_style(member, 3.2)
        for seed, points in {**(seeds if len(seeds) > 1 else {}), **cut.get(member.label, {})}.items():
            if points:
                thin = {"color": style["color"], "linewidth": 0.5, "alpha": 0.4, "zorder": 2}
                plot_with_tip(axes, f"{member.label}, seed {seed}", *zip(*points, strict=True), **thin)
        mean = mean_line(seeds)
        if mean:
            words = f"{member.label}, mean of {len(seeds)} seeds" if len(seeds) > 1 else member.label
            every = max(1, len(mean) // marks)
            plot_with_tip(axes, words, *zip(*mean, strict=True), **style, markevery=every, zorder=3)
    if log:
        log_ticks(axes)


def mean_line(seeds: Mapping[str, Points]) -> Points:
    """The mean over seeds at every x that all of them have."""
    by_seed = [dict(points) for points in seeds.values() if points]
    if not by_seed:
        return []
    shared = sorted(set.intersection(*map(set, by_seed)))
    return [(x, fmean(points[x] for points in by_seed)) for x in shared]


def log_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = log10(high / low) > 1.6
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def percent_scale(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of shares: nothing far below 0 or above 100, and ten points at least."""
    spare = max(0.0, 10 - (high - low)) / 2
    high = min(high + spare, 101.5)
    return max(min(low - spare, high - 10), -1.5), high


def apart(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places near `wanted`, in its order, at least `distance` apart and inside low..high where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Isotonic regression of (wanted place - k * distance): blocks that would overlap share their mean.
    blocks: list[list[float]] = []
    for k, i in enumerate(order):
        blocks.append([wanted[i] - k * distance])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [fmean(block) for block in blocks for _ in block]
    places = dict(zip(order, (level + k * distance for k, level in enumerate(levels)), strict=True))
    floor, ceiling = low, high
    for i in order:
        places[i] = max(places[i], floor)
        floor = places[i] + distance
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - distance
    return [places[i] for i in range(len(wanted))]
