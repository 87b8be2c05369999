"""Parts of figures: a grid of panels with one column per group of members, curves over seeds, labels that keep apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from statistics import fmean
from types import MappingProxyType
from typing import Any

from kava.lab.analysis.study import Group, StudyMember
from kava.lab.page.figures import INK, LIGHT, MUTED, WIDTH, colour, tip

Points = Sequence[tuple[float, float]]
Lines = Mapping[str, Mapping[str, Points]]  # member's label -> seed's name -> points
LETTER = 0.063  # inches that a letter of a label takes, at most
LONGEST = 36  # letters of a name
LINE = 0.13  # inches from one line of a legend to the next
LEFT, RIGHT, BOTTOM, GAP = 0.42, 0.08, 0.42, 0.32


@dataclass(frozen=True)
class Grid:
    """A row per measure and a column per group; with one group, the measures two by two."""

    titles: Sequence[str]
    groups: Sequence[Group]
    height: float = 1.35
    xlabel: str = ""

    @property
    def columns(self) -> int:
        return len(self.groups) if len(self.groups) > 1 else min(2, len(self.titles))

    @property
    def rows(self) -> int:
        return len(self.titles) if len(self.groups) > 1 else ceil(len(self.titles) / self.columns)

    @property
    def size(self) -> tuple[float, float]:
        return self.size_across, self._legend + self.rows * (self.height + GAP) - GAP + BOTTOM

    @property
    def _legend(self) -> float:
        """Inches above the panels: group's title, legend, the first row's title."""
        lines = max(ceil(len(group.members) / self._legend_columns(group)) for group in self.groups)
        return (0.24 if len(self.groups) > 1 else 0.05) + lines * LINE + 0.3

    def _legend_columns(self, group: Group) -> int:
        longest = letters(group.members) + 0.45
        room = self._panel_width if len(self.groups) > 1 else WIDTH - LEFT
        return max(1, min(len(group.members), int(room / longest)))

    @property
    def _between(self) -> float:
        """Inches between columns: the measures side by side have numbers of their own."""
        return 0.3 if len(self.groups) > 1 else 0.5

    @property
    def _panel_width(self) -> float:
        return (self.size_across - LEFT - RIGHT - self._between * (self.columns - 1)) / self.columns

    @property
    def size_across(self) -> float:
        return max(WIDTH, 1.9 * self.columns)

    def axes(self, figure: Any) -> list[list[tuple[Any, Group]]]:
        """For each measure its panels, with titles, legends and the label below."""
        width, height = self.size
        found: list[list[tuple[Any, Group]]] = [[] for _ in self.titles]
        for index, title in enumerate(self.titles):
            for column, group in enumerate(self.groups):
                x, y = (column, index) if len(self.groups) > 1 else (index % self.columns, index // self.columns)
                left = LEFT + x * (self._panel_width + self._between)
                bottom = height - self._legend - y * (self.height + GAP) - self.height
                box = (left / width, bottom / height, self._panel_width / width, self.height / height)
                one = figure.add_axes(box)
                if x == 0 or len(self.groups) == 1:
                    one.set_title(title, x=0, pad=5)
                last = y == self.rows - 1 or (len(self.groups) == 1 and index + self.columns >= len(self.titles))
                if last:
                    one.set_xlabel(self.xlabel, labelpad=2)
                elif self.xlabel:  # the same axis all the way down
                    one.tick_params(axis="x", labelbottom=False)
                found[index].append((one, group))
        for column, group in enumerate(self.groups):
            self._head(figure, group, LEFT + column * (self._panel_width + self._between))
        return found

    def _head(self, figure: Any, group: Group, left: float) -> None:
        from matplotlib.lines import Line2D

        width, height = self.size
        top = height - 0.03
        if len(self.groups) > 1:
            figure.text(left / width, top / height, group.title, va="top", color=INK, weight="bold", size=7.6)
            top -= 0.2
        handles = [Line2D([], [], label=short(member.label), **line_style(member)) for member in group.members]
        if handles:
            figure.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=(left / width, top / height),
                ncols=self._legend_columns(group),
                columnspacing=1.2,
            )


def short(label: str, most: int = LONGEST) -> str:
    """A member's name for a figure."""
    return label if len(label) <= most else label[: most - 1] + "\u2026"


def shown_token(token: str) -> str:
    """A token's text with its white space to be seen."""
    shown = token.replace("\u0120", " ").replace("\u2581", " ").replace("\n", "\\n")
    return shown.replace(" ", "\u2423") if shown.strip() == "" else shown.strip()


def letters(members: Iterable[StudyMember]) -> float:
    """Inches that the longest of their names takes."""
    return LETTER * max((len(short(member.label)) for member in members), default=1)


def line_style(member: StudyMember, size: float = 3.6) -> dict[str, Any]:
    shade = colour(member.look)
    style = {"color": shade, "linestyle": member.look.dash, "marker": member.look.marker, "markersize": size}
    return style | {"markeredgecolor": "none"}


def curves(
    one: Any, group: Group, lines: Lines, log: bool = False, marks: int = 4, cut: Lines = MappingProxyType({})
) -> None:
    """A thin line per seed, their mean thick with `marks` markers, every other group's means in grey behind.

    `cut` are the lines of runs that were cut short: drawn thin, in no mean.
    """
    inside = {member.label for member in group.members}
    for label, seeds in lines.items():
        if label not in inside:
            mean = mean_line(seeds)
            one.plot(*zip(*mean, strict=True), color=LIGHT["shade"], linewidth=0.7, zorder=1.5) if mean else None
    for member in group.members:
        seeds = lines.get(member.label, {})
        style = line_style(member, 3.2)
        thin_ones = {**(seeds if len(seeds) > 1 else {}), **cut.get(member.label, {})}
        for seed, points in thin_ones.items():
            if points:
                (thin,) = one.plot(*zip(*points, strict=True), color=style["color"], linewidth=0.5, alpha=0.4, zorder=2)
                tip(thin, f"{member.label}, seed {seed}")
        mean = mean_line(seeds)
        if mean:
            (thick,) = one.plot(*zip(*mean, strict=True), **style, markevery=max(1, len(mean) // marks), zorder=3)
            tip(thick, f"{member.label}, mean of {len(seeds)} seeds" if len(seeds) > 1 else member.label)
    if log:
        log_ticks(one)


def mean_line(seeds: Mapping[str, Points]) -> Points:
    """The mean over seeds at every x that all of them have."""
    by_seed = [dict(points) for points in seeds.values() if points]
    if not by_seed:
        return []
    shared = sorted(set.intersection(*(set(one) for one in by_seed)))
    return [(x, fmean(one[x] for one in by_seed)) for x in shared]


def log_ticks(one: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    one.set_yscale("log")
    low, high = one.get_ylim()
    wide = log10(high / low) > 1.6
    one.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    one.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    one.yaxis.set_minor_formatter(NullFormatter())
    one.tick_params(axis="y", which="minor", length=0)


def share_scale(panels: Sequence[Any]) -> None:
    """The same y for the panels of a row; only the first shows its numbers."""
    limits = [one.get_ylim() for one in panels]
    for i, one in enumerate(panels):
        one.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        if i:
            one.tick_params(axis="y", labelleft=False)
            one.spines["left"].set_visible(False)


def percent_scale(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of shares: nothing far below 0 or above 100, and ten points at least."""
    spare = max(0.0, 10 - (high - low)) / 2
    high = min(high + spare, 101.5)
    return max(min(low - spare, high - 10), -1.5), high


def apart(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places near `wanted`, in its order, at least `distance` apart and inside low..high where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[Any]] = []  # [indices, centre of the whole block]
    for i in order:
        blocks.append([[i], wanted[i]])
        while len(blocks) > 1 and _top(blocks[-2], distance) + distance > _bottom(blocks[-1], distance):
            last = blocks.pop()
            one = blocks[-1]
            count, more = len(one[0]), len(last[0])
            one[1] = (one[1] * count + last[1] * more) / (count + more)
            one[0] += last[0]
    found = [0.0] * len(wanted)
    for indices, centre in blocks:
        start = centre - (len(indices) - 1) / 2 * distance
        for k, i in enumerate(indices):
            found[i] = start + k * distance
    return _inside(found, order, distance, low, high)


def _bottom(block: list[Any], distance: float) -> float:
    return float(block[1]) - (len(block[0]) - 1) / 2 * distance


def _top(block: list[Any], distance: float) -> float:
    return float(block[1]) + (len(block[0]) - 1) / 2 * distance


def _inside(places: list[float], order: Sequence[int], distance: float, low: float, high: float) -> list[float]:
    """Pushed up from `low`, then down from `high`."""
    floor = low
    for i in order:
        places[i] = max(places[i], floor)
        floor = places[i] + distance
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - distance
    return places


def no_data(one: Any, words: str) -> None:
    one.text(0.5, 0.5, words, transform=one.transAxes, ha="center", va="center", color=MUTED, style="italic")
