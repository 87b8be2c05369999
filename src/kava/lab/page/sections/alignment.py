"""How a teacher meets the student: which of its tokens and which of its layers stand for the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.lab.analysis.mixture_logs import AlignmentExample, LogsByMember, TeacherAlignment
from kava.lab.page.charts import short, shown_token
from kava.lab.page.figures import INK, WIDTH, Plot
from kava.lab.page.heat import SHARE, Panels, heat, name_ticks
from kava.lab.page.markup import Html, Row, listed, number, paragraph

MOST_ROWS, MOST_COLUMNS = 36, 50  # tokens that are drawn
LETTER = 0.056  # inches of a small letter
ABOVE = 0.24  # inches for a panel's title


@dataclass(frozen=True)
class Named:
    """One way a teacher is aligned, and the members that use it."""

    label: str
    aligned: TeacherAlignment
    members: tuple[str, ...]


def alignment(found: LogsByMember) -> list[Plot | Html]:
    """A figure of tokens for each teacher and one of layers; what several runs share is drawn once."""
    different = distinct(found)
    if not different:
        return []
    unread = [
        f"Of {one.label}, layer{'s' if len(layers) > 1 else ''} {listed(layers)} "
        f"{'are' if len(layers) > 1 else 'is'} read by no student layer."
        for one in different
        if (layers := one.aligned.unread)
    ]
    return [*_tokens(different), _layers(different), *([paragraph(*unread)] if unread else [])]


def distinct(found: LogsByMember) -> list[Named]:
    """Every different alignment; a teacher that is aligned in several ways is named with the first member of each."""
    users: dict[TeacherAlignment, dict[str, None]] = {}
    for label, seeds in found.items():
        for mixture in seeds.values():
            for aligned in mixture.alignment or ():
                users.setdefault(aligned, {})[label] = None
    names = [aligned.name for aligned in users]
    found_names: list[Named] = []
    for aligned, members in users.items():
        label = aligned.name if names.count(aligned.name) == 1 else f"{aligned.name} of {next(iter(members))}"
        taken = sum(one.label.split(" (")[0] == label for one in found_names)
        found_names.append(Named(f"{label} ({taken + 1})" if taken else label, aligned, tuple(members)))
    return found_names


@dataclass(frozen=True)
class _Panel:
    """One teacher's tokens against the student's, in inches; long texts are drawn up to where there is room."""

    label: str
    example: AlignmentExample

    @property
    def rows(self) -> int:
        return min(MOST_ROWS, len(self.example.student))

    @property
    def columns(self) -> int:
        """The teacher's tokens up to the last that one of the drawn rows meets."""
        met = [j for row in self.example.iou[: self.rows] for j, share in enumerate(row) if share > 0]
        return max(1, min(MOST_COLUMNS, max(met, default=len(self.example.teacher) - 1) + 1))

    @property
    def left(self) -> float:
        return max(0.4, 0.14 + LETTER * _longest(self.example.student[: self.rows]))

    @property
    def below(self) -> float:
        return 0.2 + LETTER * _longest(self.example.teacher[: self.columns])

    @property
    def cell(self) -> float:
        return min(0.13, (WIDTH - self.left - 0.1) / self.columns)

    @property
    def size(self) -> tuple[float, float]:
        return self.left + self.cell * self.columns, ABOVE + self.cell * self.rows + self.below

    @property
    def cut(self) -> bool:
        return self.rows < len(self.example.student) or self.columns < len(self.example.teacher)

    def draw(self, figure: Any, x: float, y: float) -> None:
        """With its upper left corner at x, y inches from the figure's."""
        across, high = figure.get_size_inches()
        width, height = self.cell * self.columns, self.cell * self.rows
        box = ((x + self.left) / across, (high - y - ABOVE - height) / high, width / across, height / high)
        one = figure.add_axes(box)
        heat(one, [row[: self.columns] for row in self.example.iou[: self.rows]], SHARE)
        for axis, tokens in ((one.yaxis, self.example.student), (one.xaxis, self.example.teacher)):
            count = self.rows if axis is one.yaxis else self.columns
            axis.set_ticks([i + 0.5 for i in range(count)], [shown_token(token) for token in tokens[:count]])
        one.tick_params(labelsize=5.4, labelcolor=INK, pad=2)
        one.tick_params(axis="x", rotation=90)
        one.set_title(short(self.label), x=0, pad=4)


def _tokens(different: Sequence[Named]) -> list[Plot]:
    """All teachers in one figure, side by side where there is room."""
    panels = [_Panel(one.label, one.aligned.example) for one in different if one.aligned.example]
    if not panels:
        return []
    places, x, y, line = [], 0.0, 0.0, 0.0
    for panel in panels:
        width, height = panel.size
        if x and x + width > WIDTH - 0.05:
            x, y, line = 0.0, y + line, 0.0
        places.append((x, y))
        x, line = x + width + 0.3, max(line, height)

    def draw(figure: Any) -> None:
        for panel, place in zip(panels, places, strict=True):
            panel.draw(figure, *place)

    texts = list(dict.fromkeys(f"\u201c{panel.example.text}\u201d" for panel in panels))
    cut = " Their beginnings are drawn, the table has all." if any(panel.cut for panel in panels) else ""
    return [
        Plot(
            name="tokens",
            title="The same text in the student's tokens and the teachers'",
            caption=f"{' '.join(texts)} Rows are the student's tokens, columns the teacher's. Full colour: both cover the same "
            f"characters; no colour: they share too few.{cut}",
            alt=f"A panel for each of {listed([panel.label for panel in panels])}; the overlaps are in the table below.",
            size=(WIDTH, y + line),
            draw=draw,
            header=("teacher", "place", "student's token", "teacher's tokens (overlap)", "overlap in all"),
            rows=[
                (panel.label, i, shown_token(token), _partners(panel.example, i), number(sum(panel.example.iou[i]), 3))
                for panel in panels
                for i, token in enumerate(panel.example.student)
            ],
        )
    ]


def _partners(example: AlignmentExample, i: int) -> str:
    words = [
        f"{shown_token(token)} ({number(share, 2)})"
        for token, share in zip(example.teacher, example.iou[i], strict=True)
        if share > 0
    ]
    return "  ".join(words) or "none"


def _longest(tokens: Sequence[str]) -> int:
    return max((len(shown_token(token)) for token in tokens), default=1)


def _layers(different: Sequence[Named]) -> Plot:
    """Student layers by teacher layers, a panel per teacher."""
    students = max(len(one.aligned.layer_map) for one in different)
    panels = Panels(len(different), min(3, len(different)), height=min(2.4, max(0.8, 0.1 * students)))

    def draw(figure: Any) -> None:
        for panel, one in zip(panels.axes(figure), different, strict=True):
            aligned = one.aligned
            heat(
                panel,
                [[dict(entry).get(j, 0.0) for j in range(aligned.num_layers)] for entry in aligned.layer_map],
                SHARE,
            )
            name_ticks(panel.xaxis, range(aligned.num_layers), most=int(panels.width / 0.2))
            name_ticks(panel.yaxis, range(len(aligned.layer_map)), most=int(panels.height / 0.12))
            panel.set_title(short(one.label), x=0, pad=4)
            panel.set_xlabel("teacher layer", labelpad=2)
            panel.set_ylabel("student layer", labelpad=2)

    rows: list[Row] = []
    for one in different:
        for i, entry in enumerate(one.aligned.layer_map):
            words = ", ".join(
                f"{layer} ({weight:.2f})" if weight < 1 else str(layer) for layer, weight in entry if weight
            )
            rows.append((one.label, listed(one.members), i, words))
    return Plot(
        name="layer_map",
        title="Teacher layers that each student layer is compared with",
        caption="Full colour: the student layer reads this teacher layer alone; pale: a share of it. The first layers are on top "
        "and on the left.",
        alt=f"A panel for each of {listed([one.label for one in different])}; every share is in the table below.",
        size=panels.size,
        draw=draw,
        header=("teacher", "members", "student layer", "teacher layers (share)"),
        rows=rows,
    )
