"""What accuracy costs: forward passes per question, and wall time."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from kava.lab.analysis.study import Score, Study, StudyMember
from kava.lab.page.blocks import Plot
from kava.lab.page.charts import add_panel, apart, letters, line_style, percent_scale, short
from kava.lab.page.figures import WIDTH, colour, plot_with_tip
from kava.lab.page.formats import DASH, number, percent, plot_name, seconds
from kava.lab.page.sections.accuracy import Scores, mark_seeds, scores_on

Mark = tuple[StudyMember, float, float]  # forward passes, accuracy in percent
HEIGHT, PANEL_WIDTH, PANEL_HEIGHT = 3.1, WIDTH - 0.5, 3.1 - 0.72  # inches


def passes(study: Study, label: str) -> Iterator[Plot]:
    scores = [(member, score) for member, score in scores_on(study, label) if score.passes is not None]
    if not scores:
        return
    yield Plot(
        name=plot_name("passes", label),
        title=f"Accuracy on {label} against forward passes per question",
        caption="Means over seeds, dots are seeds. Passes by the rule 1 + T + generated tokens (the end token included). "
        "Wall times are of whole evaluations and compare only on the same device and batch size.",
        alt="; ".join(f"{m.label}: {percent(s.mean)} % with {number(s.passes)} passes" for m, s in scores),
        size=(WIDTH, HEIGHT),
        draw=lambda figure: _draw_passes(figure, scores),
        header=("member", "seeds", "accuracy, %", "passes", "executed calls", "generated tokens", "wall time",
                "device, batch size"),
        rows=[
            (member.label, len(score.results), percent(score.mean), number(score.passes),
             number(score.average("avg_executed_calls")), number(score.average("avg_generated_tokens")),
             seconds(score.average("wall_time_s")), _device_and_batch(score))
            for member, score in scores
        ],
    )  # fmt: skip


def _draw_passes(figure: Any, scores: Scores) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = add_panel(figure, 0.42, 0.3, PANEL_WIDTH, PANEL_HEIGHT)
    marks = [(member, float(score.passes or 0), 100 * float(score.mean or 0)) for member, score in scores]
    most = max(x for _, x, _ in marks)
    for (member, x, y), (_, score) in zip(marks, scores, strict=True):
        dots = {"markersize": 2.2, "alpha": 0.5, "zorder": 2}
        mark_seeds(axes, member, score, lambda result: (result.passes_mean, 100 * result.accuracy), **dots)
        words = f"{member.label}: {y:.1f} %, {x:.3g} passes"
        plot_with_tip(axes, words, [x], [y], **line_style(member, 5.5), zorder=3)
    inch = PANEL_WIDTH / max(most * 1.04, most / (1 - _reach(marks) / PANEL_WIDTH))  # per pass
    axes.set_xlim(0, PANEL_WIDTH / inch)
    low, high = axes.get_ylim()
    low, high = percent_scale(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_ylim(low, high)
    _add_labels(axes, marks, inch, 0.135 * (high - low) / PANEL_HEIGHT, (low, high))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("accuracy, %", x=0, pad=5)
    axes.set_xlabel("forward passes per question", labelpad=2)


def _add_labels(axes: Any, marks: Sequence[Mark], inch: float, line: float, limits: tuple[float, float]) -> None:
    """Names next to their marks, in columns: to the right where there is room up to the next column, else to the left."""
    columns = _columns(marks, 0.12 / inch)
    taken = 0.0  # up to where the labels so far reach
    for i, column in enumerate(columns):
        left, right = min(x for _, x, _ in column), max(x for _, x, _ in column)
        following = columns[i + 1][0][1] if i + 1 < len(columns) else axes.get_xlim()[1] + 1
        reach = _reach(column) / inch
        on_left = right + reach > following and left - reach >= taken
        start, side = (left - 0.16 / inch, "right") if on_left else (right + 0.16 / inch, "left")
        taken = right if on_left else right + reach
        levels = apart([y for _, _, y in column], line, limits[0] + line / 2, limits[1] - line / 2)
        for (member, x, y), level in zip(column, levels, strict=True):
            shade = colour(member.look)
            axes.plot([x, start], [y, level], color=shade, linewidth=0.4, alpha=0.7, zorder=1.8)
            words = f"{short(member.label)} " if on_left else f" {short(member.label)}"
            axes.text(start, level, words, va="center", ha=side, color=shade)


def _reach(marks: Sequence[Mark]) -> float:
    """Inches from a mark to the end of the longest label."""
    return letters(member for member, _, _ in marks) + 0.25


def _columns(marks: Sequence[Mark], near: float) -> list[list[Mark]]:
    """Marks that stand above each other, from left to right."""
    ordered = sorted(marks, key=lambda mark: mark[1])
    starts = [i for i, mark in enumerate(ordered) if i == 0 or mark[1] - ordered[i - 1][1] >= near]
    return [ordered[start:end] for start, end in pairwise([*starts, len(ordered)])]


def _device_and_batch(score: Score) -> str:
    used = [f"{r.fields.get('device', DASH)}, {r.fields.get('batch_size', DASH)}" for _, r in score.results]
    return "; ".join(dict.fromkeys(used))
