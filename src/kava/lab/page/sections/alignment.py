"""How teachers are aligned with the student: which of their tokens and layers are compared with the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.lab.analysis.mixture_logs import AlignmentExample, LogsByMember, TeacherAlignment
from kava.lab.page.blocks import Block, Paragraph, Plot, Row
from kava.lab.page.charts import add_panel, short, visible_token
from kava.lab.page.figures import INK, WIDTH
from kava.lab.page.formats import listed, number
from kava.lab.page.heat import SHARE, Panels, heat, name_ticks

MOST_ROWS, MOST_COLUMNS = 36, 50  # tokens that are drawn
LETTER = 0.056  # inches of a small letter
ABOVE = 0.24  # inches for a panel's title


@dataclass(frozen=True)
class NamedAlignment:
    """One way a teacher is aligned, and the members that use it."""

    label: str
    aligned: TeacherAlignment
    members: tuple[str, ...]


def alignment(logs: LogsByMember) -> list[Block]:
    """A figure of tokens and one of layers, a panel per teacher; what several runs share is drawn once."""
    alignments = distinct_alignments(logs)
    if not alignments:
        return []
    unread = [
        f"Of {named.label}, layer{'s' if len(layers) > 1 else ''} {listed(layers)} "
        f"{'are' if len(layers) > 1 else 'is'} read by no student layer."
        for named in alignments
        if (layers := named.aligned.unread)
    ]
    return [*_tokens(alignments), _layers(alignments), *([Paragraph(" ".join(unread))] if unread else [])]


def distinct_alignments(logs: LogsByMember) -> list[NamedAlignment]:
    """Every different alignment; a teacher that is aligned in several ways is named with the first member of each."""
    users: dict[TeacherAlignment, dict[str, None]] = {}
    for label, seeds in logs.items():
        for log in seeds.values():
            for aligned in log.alignment or ():
                users.setdefault(aligned, {})[label] = None
    names = [aligned.name for aligned in users]
    alignments: list[NamedAlignment] = []
    for aligned, members in users.items():
        label = aligned.name if names.count(aligned.name) == 1 else f"{aligned.name} of {next(iter(members))}"
        taken = sum(named.label.split(" (")[0] == label for named in alignments)
        alignments.append(NamedAlignment(f"{label} ({taken + 1})" if taken else label, aligned, tuple(members)))
    return alignments


class _Panel:
    """One teacher's tokens against the student's, in inches; long texts are drawn up to where there is room."""

    def __init__(self, label: str, example: AlignmentExample) -> None:
        self.label, self.example = label, example
        self.rows = min(MOST_ROWS, len(example.student))
        # The teacher's tokens up to the last that overlaps a token of a drawn row.
        overlaps = [j for row in example.iou[: self.rows] for j, share in enumerate(row) if share > 0]
        self.columns = max(1, min(MOST_COLUMNS, max(overlaps, default=len(example.teacher) - 1) + 1))
        self.cut = self.rows < len(example.student) or self.columns < len(example.teacher)
        self.left = max(0.4, 0.14 + LETTER * _longest(example.student[: self.rows]))
        below = 0.2 + LETTER * _longest(example.teacher[: self.columns])
        self.cell = min(0.13, (WIDTH - self.left - 0.1) / self.columns)
        self.size = self.left + self.cell * self.columns, ABOVE + self.cell * self.rows + below

    def draw(self, figure: Any, x: float, y: float) -> None:
        """Draws the panel, its upper left corner x, y inches from the figure's."""
        axes = add_panel(figure, x + self.left, y + ABOVE, self.cell * self.columns, self.cell * self.rows)
        heat(axes, [row[: self.columns] for row in self.example.iou[: self.rows]], SHARE)
        for axis, count, tokens in (
            (axes.yaxis, self.rows, self.example.student),
            (axes.xaxis, self.columns, self.example.teacher),
        ):
            axis.set_ticks([i + 0.5 for i in range(count)], [visible_token(token) for token in tokens[:count]])
        axes.tick_params(labelsize=5.4, labelcolor=INK, pad=2)
        axes.tick_params(axis="x", rotation=90)
        axes.set_title(short(self.label), x=0, pad=4)


def _tokens(alignments: Sequence[NamedAlignment]) -> list[Plot]:
    """All teachers in one figure, side by side where there is room."""
    panels = [_Panel(named.label, named.aligned.example) for named in alignments if named.aligned.example]
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
                (
                    panel.label,
                    i,
                    visible_token(token),
                    _partners(panel.example, i),
                    number(sum(panel.example.iou[i]), 3),
                )
                for panel in panels
                for i, token in enumerate(panel.example.student)
            ],
        )
    ]


def _partners(example: AlignmentExample, i: int) -> str:
    words = [
        f"{visible_token(token)} ({number(share, 2)})"
        for token, share in zip(example.teacher, example.iou[i], strict=True)
        if share > 0
    ]
    return "  ".join(words) or "none"


def _longest(tokens: Sequence[str]) -> int:
    return max((len(visible_token(token)) for token in tokens), default=1)


def _layers(alignments: Sequence[NamedAlignment]) -> Plot:
    """Student layers by teacher layers, a panel per teacher."""
    most = max(len(named.aligned.layer_map) for named in alignments)
    panels = Panels(len(alignments), min(3, len(alignments)), height=min(2.4, max(0.8, 0.1 * most)))

    def draw(figure: Any) -> None:
        for axes, named in zip(panels.axes(figure), alignments, strict=True):
            layers, maps = range(named.aligned.num_layers), named.aligned.layer_map
            heat(axes, [[dict(entry).get(j, 0.0) for j in layers] for entry in maps], SHARE)
            name_ticks(axes.xaxis, layers, most=int(panels.width / 0.2))
            panels.label(axes, short(named.label), "teacher layer", "student layer", range(len(maps)))

    rows: list[Row] = []
    for named in alignments:
        for i, entry in enumerate(named.aligned.layer_map):
            shares = [f"{layer} ({weight:.2f})" if weight < 1 else str(layer) for layer, weight in entry if weight]
            rows.append((named.label, listed(named.members), i, ", ".join(shares)))
    return Plot(
        name="layer_map",
        title="Teacher layers that each student layer is compared with",
        caption="Full colour: the student layer reads this teacher layer alone; pale: a share of it. The first layers are on top "
        "and on the left.",
        alt=f"A panel for each of {listed([named.label for named in alignments])}; every share is in the table below.",
        size=panels.size,
        draw=draw,
        header=("teacher", "members", "student layer", "teacher layers (share)"),
        rows=rows,
    )
