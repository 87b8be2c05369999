"""How teachers are aligned with the student: which of their tokens and layers are compared with the student's."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kava.lab.analysis.mixture_logs import AlignmentExample, LogsByMember, TeacherAlignment
from kava.lab.page.blocks import Block, Paragraph, Plot
from kava.lab.page.charts import add_panel, short, visible_token
from kava.lab.page.figures import INK, WIDTH
from kava.lab.page.formats import listed, number
from kava.lab.page.heat import SHARE, Panels, heat, name_ticks

MOST_ROWS, MOST_COLUMNS = 36, 50  # tokens that are drawn
LETTER = 0.056  # inches of a small letter
ABOVE = 0.24  # inches for a panel's title
Alignments = Mapping[
    str, tuple[TeacherAlignment, Sequence[str]]
]  # name -> a way a teacher is aligned, members that use it


def alignment(logs: LogsByMember) -> Iterator[Block]:
    """A figure of tokens and one of layers, a panel per teacher; what several runs share is drawn once."""
    alignments = _distinct_alignments(logs)
    panels = [_Panel(label, aligned.example) for label, (aligned, _) in alignments.items() if aligned.example]
    if panels:
        yield _tokens(panels)
    if alignments:
        yield _layers(alignments)
    unread = {label: aligned.unread for label, (aligned, _) in alignments.items() if aligned.unread}
    words = {
        label: f"layers {listed(layers)} are" if len(layers) > 1 else f"layer {layers[0]} is"
        for label, layers in unread.items()
    }
    if words:
        yield Paragraph(" ".join(f"Of {label}, {which} read by no student layer." for label, which in words.items()))


def _distinct_alignments(logs: LogsByMember) -> Alignments:
    """Every different alignment; a teacher that is aligned in several ways is named with the first member of each."""
    users: dict[TeacherAlignment, dict[str, None]] = {}
    for label, seeds in logs.items():
        for aligned in (aligned for log in seeds.values() for aligned in log.alignment or ()):
            users.setdefault(aligned, {})[label] = None
    names = [aligned.name for aligned in users]
    uses: Counter[str] = Counter()
    alignments = {}
    for aligned, members in users.items():
        label = aligned.name if names.count(aligned.name) == 1 else f"{aligned.name} of {next(iter(members))}"
        uses[label] += 1
        again = f" ({uses[label]})" if uses[label] > 1 else ""
        alignments[label + again] = aligned, list(members)
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
        name_ticks(axes.yaxis, list(map(visible_token, self.example.student[: self.rows])))
        name_ticks(axes.xaxis, list(map(visible_token, self.example.teacher[: self.columns])))
        axes.tick_params(labelsize=5.4, labelcolor=INK, pad=2)
        axes.tick_params(axis="x", rotation=90)
        axes.set_title(short(self.label), x=0, pad=4)


def _tokens(panels: Sequence[_Panel]) -> Plot:
    """All teachers in one figure, side by side where there is room."""
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
    return Plot(
        name="tokens",
        title="The same text in the student's tokens and the teachers'",
        caption=f"{' '.join(texts)} Rows are the student's tokens, columns the teacher's. Full colour: both cover the same "
        f"characters; no colour: they share too few.{cut}",
        alt=f"A panel for each of {listed([panel.label for panel in panels])}; the overlaps are in the table below.",
        size=(WIDTH, y + line),
        draw=draw,
        header=("teacher", "place", "student's token", "teacher's tokens (overlap)", "overlap in all"),
        rows=[
            (panel.label, i, visible_token(token), _partners(panel.example.teacher, shares), number(sum(shares), 3))
            for panel in panels
            for i, (token, shares) in enumerate(zip(panel.example.student, panel.example.iou, strict=True))
        ],
    )


def _partners(tokens: Sequence[str], shares: Sequence[float]) -> str:
    """The teacher's tokens that overlap, with their shares."""
    pairs = zip(tokens, shares, strict=True)
    return "  ".join(f"{visible_token(token)} ({number(share, 2)})" for token, share in pairs if share > 0) or "none"


def _longest(tokens: Sequence[str]) -> int:
    return max((len(visible_token(token)) for token in tokens), default=1)


def _layers(alignments: Alignments) -> Plot:
    """Student layers by teacher layers, a panel per teacher."""
    most = max(len(aligned.layer_map) for aligned, _ in alignments.values())
    panels = Panels(len(alignments), min(3, len(alignments)), height=min(2.4, max(0.8, 0.1 * most)))

    def draw(figure: Any) -> None:
        for axes, (label, (aligned, _)) in zip(panels.axes(figure), alignments.items(), strict=True):
            layers, maps = range(aligned.num_layers), aligned.layer_map
            heat(axes, [[dict(entry).get(j, 0.0) for j in layers] for entry in maps], SHARE)
            name_ticks(axes.xaxis, layers, most=int(panels.width / 0.2))
            panels.label(axes, short(label), "teacher layer", range(len(maps)))

    def shares(entry: Sequence[tuple[int, float]]) -> str:
        return ", ".join(f"{layer} ({weight:.2f})" if weight < 1 else str(layer) for layer, weight in entry if weight)

    return Plot(
        name="layer_map",
        title="Teacher layers that each student layer is compared with",
        caption="Full colour: the student layer reads this teacher layer alone; pale: a share of it. The first layers are on top "
        "and on the left.",
        alt=f"A panel for each of {listed(list(alignments))}; every share is in the table below.",
        size=panels.size,
        draw=draw,
        header=("teacher", "members", "student layer", "teacher layers (share)"),
        rows=[
            (label, listed(members), i, shares(entry))
            for label, (aligned, members) in alignments.items()
            for i, entry in enumerate(aligned.layer_map)
        ],
    )
