"""How often each member is right: overall with intervals, and by number of steps."""

from __future__ import annotations

from typing import Any

from kava.lab.analysis.study import GROUPS, Score, Study, StudyMember, panels
from kava.lab.page.charts import Grid, curves, letters, line_style, percent_scale, share_scale, short
from kava.lab.page.figures import INK, LIGHT, MUTED, WIDTH, Plot, colour, tip
from kava.lab.page.markup import NONE, Heading, Row, counted, mean_sd, missing, percent, seed_name, span
from kava.lab.page.sections.section import Section

EVALUATE = "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET"
Scored = list[tuple[StudyMember, Score]]
ROW = 0.21  # inches


def accuracy(study: Study) -> Section:
    parts: list[Any] = []
    for label in study.sets:
        found = scored(study, label)
        if found:
            parts.append(_dots(label, found))
    return Section("accuracy", "Accuracy", tuple(parts) or (missing("No run has results on any set.", EVALUATE),))


def by_steps(study: Study) -> Section:
    parts: list[Any] = []
    for label in study.sets:
        found = [(m, s) for m, s in scored(study, label) if any(_steps(r.fields) for _, r in s.results)]
        if found:
            parts.append(_step_lines(label, found))
    nothing = missing("The results count no problems by number of steps: their sets do not tell their steps.")
    return Section("steps", "Accuracy by number of steps", tuple(parts) or (nothing,))


def scored(study: Study, label: str) -> Scored:
    """Everyone with results on a set, other modes of the same checkpoints included."""
    found = [(entry, study.score(entry, label)) for entry in study.entries]
    return [(entry, score) for entry, score in found if score.results]


def plot_name(kind: str, label: str) -> str:
    """A name for files and ids."""
    return f"{kind}_" + "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in label)


def _dots(label: str, found: Scored) -> Plot:
    total = found[0][1].results[0][1].total
    kinds = {score.interval[2] for _, score in found if score.interval}
    how = []
    if "t" in kinds:
        how.append("lines are 95 % t intervals of the mean over seeds")
    if "Wilson" in kinds:
        how.append("for a single run, the 95 % Wilson interval over its items")
    if any(len(score.results) == 2 for _, score in found):
        how.append("two seeds give no interval")
    rows: list[Row] = []
    for group, inside in _by_group(found):
        rows += [Heading(group)] if group else []
        for member, score in inside:
            seeds = ", ".join(f"{percent(r.accuracy)} ({seed_name(run.seed)})" for run, r in score.results)
            counts = ", ".join(NONE if r.correct is None else f"{r.correct:,}" for _, r in score.results)
            kind = score.interval[2] if score.interval else NONE
            rows.append((member.label, len(score.results), mean_sd(score.mean, score.sd), span(score.interval), kind,
                         seeds, counts))  # fmt: skip
    lines = sum(bool(group) for group, _ in _by_group(found)) + len(found)
    return Plot(
        name=plot_name("accuracy", label),
        title=f"Accuracy on {label}",
        caption=f"{counted(total, 'item')}. Large marks are means over seeds, dots below them single seeds; "
        f"{'; '.join(how) or 'no intervals'}. On the right, mean and sample standard deviation over seeds.",
        alt="; ".join(f"{member.label} {mean_sd(score.mean, score.sd)} %" for member, score in found),
        size=(WIDTH, 0.62 + lines * ROW),
        draw=lambda figure: _draw_dots(figure, found, lines),
        header=("member", "seeds", "accuracy, % (sd)", "95 % interval", "kind", "each seed, %", "correct"),
        rows=rows,
    )


def _draw_dots(figure: Any, found: Scored, lines: int) -> None:
    width, height = WIDTH, 0.62 + lines * ROW
    left = 0.15 + letters(member for member, _ in found)
    right = 0.85
    one = figure.add_axes((left / width, 0.4 / height, (width - left - right) / width, lines * ROW / height))
    y, ticks, edge = 0.0, [], one.get_yaxis_transform()
    for group, inside in _by_group(found):
        if group:
            one.text(-left / (width - left - right), y, group, transform=edge, color=MUTED, style="italic", va="center")
            y += 1
        for member, score in inside:
            _draw_score(one, member, score, y)
            words = mean_sd(score.mean, score.sd)
            one.text(1.02, y, words, transform=edge, va="center", ha="left", color=INK)
            ticks.append((y, short(member.label)))
            y += 1
    one.text(1.02, -1.05, "mean (sd), %", transform=edge, va="center", ha="left", color=MUTED)
    one.set_xlim(percent_scale(*one.get_xlim()))
    one.set_ylim(lines - 0.5, -0.5)
    one.set_yticks([place for place, _ in ticks], [words for _, words in ticks])
    one.tick_params(axis="y", labelcolor=INK)
    one.grid(axis="y", visible=False)
    one.spines["left"].set_visible(False)
    one.set_xlabel("accuracy, %", labelpad=2)


def _draw_score(one: Any, member: StudyMember, score: Score, y: float) -> None:
    shade = colour(member.look)
    assert score.mean is not None
    one.axhline(y, color=LIGHT["grid"], linewidth=0.5, zorder=0.5)
    if score.interval:
        low, high, _ = score.interval
        one.plot([100 * low, 100 * high], [y - 0.1] * 2, color=shade, linewidth=1.6, solid_capstyle="butt", zorder=2)
    (mark,) = one.plot([100 * score.mean], [y - 0.1], **line_style(member, 5.2), zorder=3)
    tip(mark, f"{member.label}: {mean_sd(score.mean, score.sd)} %")
    if len(score.results) > 1:
        for run, result in score.results:
            (dot,) = one.plot([100 * result.accuracy], [y + 0.24], "o", color=shade, markersize=2.4, alpha=0.65,
                              markeredgecolor="none", zorder=2.5)  # fmt: skip
            tip(dot, f"{member.label}, seed {seed_name(run.seed)}: {percent(result.accuracy)} %")


def _step_lines(label: str, found: Scored) -> Plot:
    counts = sorted({n for _, score in found for _, result in score.results for n in _steps(result.fields)})
    groups = panels([member for member, _ in found])
    lines = {
        member.label: {seed_name(run.seed): _points(result.fields) for run, result in score.results}
        for member, score in found
    }
    grid = Grid([f"accuracy on {label}, %"], groups, height=2.1, xlabel="steps of the problem")

    def draw(figure: Any) -> None:
        row = grid.axes(figure)[0]
        for one, group in row:
            curves(one, group, lines, marks=len(counts))
            one.set_xticks(counts)
            one.set_xlim(counts[0] - 0.25, counts[-1] + 0.25)
        share_scale([one for one, _ in row])
        for one, _ in row:
            one.set_ylim(percent_scale(*one.get_ylim()))

    rows: list[Row] = []
    for member, score in found:
        for run, result in score.results:
            steps = _steps(result.fields)
            cells = [f"{s['correct']:,} of {s['total']:,}" if (s := steps.get(n)) else NONE for n in counts]
            rows.append((member.label, seed_name(run.seed), *cells))
    first = _steps(found[0][1].results[0][1].fields)
    grey = " Grey: the other panels' means."
    sizes = ", ".join(f"{counted(n, 'step')}: {counted(first[n]['total'], 'problem')}" for n in counts if n in first)
    return Plot(
        name=plot_name("steps", label),
        title=f"Accuracy on {label} by number of steps",
        caption=f"{sizes}. Thin lines are seeds, thick ones their mean." + (grey if len(groups) > 1 else ""),
        alt=f"Lines over {counted(len(counts), 'length')} of problems for {counted(len(found), 'member')}; counts in the "
        "table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", *(counted(n, "step") for n in counts)),
        rows=rows,
    )


def _by_group(found: Scored) -> list[tuple[str, Scored]]:
    """Groups with their titles; a single group needs none."""
    groups = [(title, [one for one in found if one[0].group == name]) for name, title in GROUPS.items()]
    filled = [(title, inside) for title, inside in groups if inside]
    return filled if len(filled) > 1 else [("", inside) for _, inside in filled]


def _steps(fields: dict[str, Any]) -> dict[int, dict[str, int]]:
    return {int(n): cell for n, cell in (fields.get("by_steps") or {}).items()}


def _points(fields: dict[str, Any]) -> list[tuple[float, float]]:
    return [(n, 100 * cell["correct"] / cell["total"]) for n, cell in sorted(_steps(fields).items()) if cell["total"]]
