"""What accuracy costs: forward passes per question, and wall time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kava.lab.analysis.study import Score, Study, StudyMember
from kava.lab.page.charts import apart, letters, line_style, percent_scale, short
from kava.lab.page.figures import WIDTH, Plot, colour, tip
from kava.lab.page.markup import NONE, missing, number, percent, seconds, seed_name
from kava.lab.page.sections.accuracy import EVALUATE, Scored, plot_name, scored
from kava.lab.page.sections.section import Section

Place = tuple[StudyMember, float, float]  # forward passes, accuracy in percent


def passes(study: Study) -> Section:
    parts: list[Any] = []
    for label in study.sets:
        found = [(member, score) for member, score in scored(study, label) if score.passes is not None]
        if found:
            parts.append(_against_passes(label, found))
    nothing = missing("The results hold no forward passes.", EVALUATE)
    return Section("passes", "Accuracy against forward passes", tuple(parts) or (nothing,))


def _against_passes(label: str, found: Scored) -> Plot:
    rows = [
        (
            member.label,
            len(score.results),
            percent(score.mean),
            number(score.passes),
            number(score.average("avg_executed_calls")),
            number(score.average("avg_generated_tokens")),
            seconds(score.average("wall_time_s")),
            _settings(score),
        )
        for member, score in found
    ]
    return Plot(
        name=plot_name("passes", label),
        title=f"Accuracy on {label} against forward passes per question",
        caption="Means over seeds, dots are seeds. Passes by the rule 1 + T + generated tokens (the end token included). "
        "Wall times are of whole evaluations and compare only on the same device and batch size.",
        alt="; ".join(f"{m.label}: {percent(s.mean)} % with {number(s.passes)} passes" for m, s in found),
        size=(WIDTH, 3.1),
        draw=lambda figure: _draw_passes(figure, found),
        header=("member", "seeds", "accuracy, %", "passes", "executed calls", "generated tokens", "wall time",
                "device, batch size"),
        rows=rows,
    )  # fmt: skip


def _draw_passes(figure: Any, found: Scored) -> None:
    from matplotlib.ticker import MaxNLocator

    width, height = WIDTH, 3.1
    one = figure.add_axes((0.42 / width, 0.42 / height, (width - 0.5) / width, (height - 0.72) / height))
    places = [(member, float(score.passes or 0), 100 * float(score.mean or 0)) for member, score in found]
    most = max(x for _, x, _ in places)
    for (member, x, y), (_, score) in zip(places, found, strict=True):
        for run, result in score.results if len(score.results) > 1 else ():
            (dot,) = one.plot([result.passes_mean], [100 * result.accuracy], "o", color=colour(member.look), alpha=0.5,
                              markersize=2.2, markeredgecolor="none", zorder=2)  # fmt: skip
            tip(dot, f"{member.label}, seed {seed_name(run.seed)}: {percent(result.accuracy)} %")
        (mark,) = one.plot([x], [y], **line_style(member, 5.5), zorder=3)
        tip(mark, f"{member.label}: {y:.1f} %, {x:.3g} passes")
    inch = (width - 0.5) / max(most * 1.04, most / (1 - _reach(places) / (width - 0.5)))  # per pass
    one.set_xlim(0, (width - 0.5) / inch)
    low, high = one.get_ylim()
    low, high = percent_scale(low - 0.05 * (high - low), high + 0.05 * (high - low))
    one.set_ylim(low, high)
    _label(one, places, inch, 0.135 * (high - low) / (height - 0.72), (low, high))
    one.xaxis.set_major_locator(MaxNLocator(integer=True))
    one.set_title("accuracy, %", x=0, pad=5)
    one.set_xlabel("forward passes per question", labelpad=2)


def _label(one: Any, places: Sequence[Place], inch: float, line: float, limits: tuple[float, float]) -> None:
    """Names beside their marks, in columns: to the right where there is room up to the next column, else to the left."""
    columns = _columns(places, 0.12 / inch)
    taken = 0.0  # up to where the labels so far reach
    for i, column in enumerate(columns):
        left, right = min(x for _, x, _ in column), max(x for _, x, _ in column)
        following = columns[i + 1][0][1] if i + 1 < len(columns) else one.get_xlim()[1] + 1
        reach = _reach(column) / inch
        on_left = right + reach > following and left - reach >= taken
        start, side = (left - 0.16 / inch, "right") if on_left else (right + 0.16 / inch, "left")
        taken = right if on_left else right + reach
        levels = apart([y for _, _, y in column], line, limits[0] + line / 2, limits[1] - line / 2)
        for (member, x, y), level in zip(column, levels, strict=True):
            shade = colour(member.look)
            one.plot([x, start], [y, level], color=shade, linewidth=0.4, alpha=0.7, zorder=1.8)
            words = f"{short(member.label)} " if on_left else f" {short(member.label)}"
            one.text(start, level, words, va="center", ha=side, color=shade)


def _reach(places: Sequence[Place]) -> float:
    """Inches from a mark to the end of the longest label."""
    return letters(member for member, _, _ in places) + 0.25


def _columns(places: Sequence[Place], near: float) -> list[list[Place]]:
    """Marks that stand above each other, from left to right."""
    found: list[list[Place]] = []
    for place in sorted(places, key=lambda one: one[1]):
        if found and place[1] - found[-1][-1][1] < near:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _settings(score: Score) -> str:
    used = [f"{r.fields.get('device', NONE)}, {r.fields.get('batch_size', NONE)}" for _, r in score.results]
    return "; ".join(dict.fromkeys(used))
