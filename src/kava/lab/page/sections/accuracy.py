"""How often each member is right: overall with intervals, and by number of steps."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kava.lab.analysis.runs import RunResult
from kava.lab.analysis.study import GROUPS, Score, Study, StudyMember, panels
from kava.lab.page.blocks import Heading, Plot, Row
from kava.lab.page.charts import Grid, add_panel, curves, letters, line_style, percent_scale, short
from kava.lab.page.figures import GRID, INK, MUTED, WIDTH, colour, plot_with_tip
from kava.lab.page.formats import DASH, GREY_LINES, SEED_LINES, counted, mean_sd, percent, plot_name, seed_name

EVALUATE = "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET"
Scores = list[tuple[StudyMember, Score]]
ROW = 0.21  # inches


def scores_on(study: Study, label: str) -> Scores:
    """The members with results on a set, and the same checkpoints in other modes."""
    scores = [(entry, study.score(entry, label)) for entry in study.entries]
    return [(entry, score) for entry, score in scores if score.results]


def accuracy(study: Study, label: str) -> Iterator[Plot]:
    """Means with their intervals, and every seed."""
    scores = scores_on(study, label)
    if not scores:
        return
    kinds = {score.interval[2] for _, score in scores if score.interval}
    how = {
        "lines are 95 % t intervals of the mean over seeds": "t" in kinds,
        "for a single run, the 95 % Wilson interval over its items": "Wilson" in kinds,
        "two seeds give no interval": any(len(score.results) == 2 for _, score in scores),
    }
    rows: list[Row] = []
    for group, inside in _by_group(scores):
        rows += [Heading(group)] if group else []
        for member, score in inside:
            low, high, kind = score.interval or (None, None, DASH)
            interval = DASH if low is None else f"{percent(low)} to {percent(high)}"
            seeds = ", ".join(f"{percent(r.accuracy)} ({seed_name(run.seed)})" for run, r in score.results)
            counts = ", ".join(DASH if r.correct is None else f"{r.correct:,}" for _, r in score.results)
            mean = mean_sd(score.mean, score.sd)
            rows.append((member.label, len(score.results), mean, interval, kind, seeds, counts))
    yield Plot(
        name=plot_name("accuracy", label),
        title=f"Accuracy on {label}",
        caption=f"{counted(scores[0][1].results[0][1].total, 'item')}. Large marks are means over seeds, dots below them "
        f"single seeds; {'; '.join(words for words, holds in how.items() if holds) or 'no intervals'}. On the right, mean "
        "and sample standard deviation over seeds.",
        alt="; ".join(f"{member.label} {mean_sd(score.mean, score.sd)} %" for member, score in scores),
        size=(WIDTH, 0.62 + len(rows) * ROW),
        draw=lambda figure: _draw_dots(figure, scores, len(rows)),
        header=("member", "seeds", "accuracy, % (sd)", "95 % interval", "kind", "each seed, %", "correct"),
        rows=rows,
    )


def _draw_dots(figure: Any, scores: Scores, lines: int) -> None:
    left = 0.15 + letters(member for member, _ in scores)
    width = WIDTH - left - 0.85
    axes = add_panel(figure, left, 0.22, width, lines * ROW)
    y, places, edge = 0, [], axes.get_yaxis_transform()
    for group, inside in _by_group(scores):
        if group:
            axes.text(-left / width, y, group, transform=edge, color=MUTED, style="italic", va="center")
            y += 1
        for member, score in inside:
            _draw_score(axes, member, score, y)
            axes.text(1.02, y, mean_sd(score.mean, score.sd), transform=edge, va="center", ha="left", color=INK)
            places.append(y)
            y += 1
    axes.text(1.02, -1.05, "mean (sd), %", transform=edge, va="center", ha="left", color=MUTED)
    axes.set_xlim(percent_scale(*axes.get_xlim()))
    axes.set_ylim(lines - 0.5, -0.5)
    names_beside_rows(axes, places, [member for _, inside in _by_group(scores) for member, _ in inside])


def names_beside_rows(axes: Any, places: Sequence[float], members: Sequence[StudyMember]) -> None:
    """Members' names on y without lines, accuracy on x."""
    axes.set_yticks(places, [short(member.label) for member in members])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy, %", labelpad=2)


def _draw_score(axes: Any, member: StudyMember, score: Score, y: float) -> None:
    shade = colour(member.look)
    assert score.mean is not None
    axes.axhline(y, color=GRID, linewidth=0.5, zorder=0.5)
    if score.interval:
        low, high, _ = score.interval
        axes.plot([100 * low, 100 * high], [y - 0.1] * 2, color=shade, linewidth=1.6, solid_capstyle="butt", zorder=2)
    words = f"{member.label}: {mean_sd(score.mean, score.sd)} %"
    plot_with_tip(axes, words, [100 * score.mean], [y - 0.1], **line_style(member, 5.2), zorder=3)
    dots = {"markersize": 2.4, "alpha": 0.65, "zorder": 2.5}
    mark_seeds(axes, member, score, lambda result: (100 * result.accuracy, y + 0.24), **dots)


def mark_seeds(
    axes: Any, member: StudyMember, score: Score, place: Callable[[RunResult], tuple[float | None, float]], **style: Any
) -> None:
    """Draws a dot for each seed at the place of its result, if there are several seeds."""
    style |= {"marker": "o", "linestyle": "none", "color": colour(member.look), "markeredgecolor": "none"}
    for run, result in score.results if len(score.results) > 1 else ():
        x, y = place(result)
        words = f"{member.label}, seed {seed_name(run.seed)}: {percent(result.accuracy)} %"
        plot_with_tip(axes, words, [x], [y], **style)


def accuracy_by_steps(study: Study, label: str) -> Iterator[Plot]:
    scores = [(m, s) for m, s in scores_on(study, label) if any(_steps(r.fields) for _, r in s.results)]
    if not scores:
        return
    counts = sorted({n for _, score in scores for _, result in score.results for n in _steps(result.fields)})
    groups = panels([member for member, _ in scores])
    lines = {
        member.label: {seed_name(run.seed): _points(result.fields) for run, result in score.results}
        for member, score in scores
    }
    grid = Grid({"accuracy": f"accuracy on {label}, %"}, groups, height=2.1, xlabel="steps of the problem")

    def draw(figure: Any) -> None:
        for axes, _, group in grid.panels(figure):
            curves(axes, group, lines, marks=len(counts))
            axes.set_xticks(counts)
            axes.set_xlim(counts[0] - 0.25, counts[-1] + 0.25)
        for axes in figure.axes:
            axes.set_ylim(percent_scale(*axes.get_ylim()))

    def cells(steps: dict[int, dict[str, int]]) -> list[str]:
        return [f"{steps[n]['correct']:,} of {steps[n]['total']:,}" if n in steps else DASH for n in counts]

    first = _steps(scores[0][1].results[0][1].fields)
    sizes = ", ".join(f"{counted(n, 'step')}: {counted(first[n]['total'], 'problem')}" for n in counts if n in first)
    yield Plot(
        name=plot_name("steps", label),
        title=f"Accuracy on {label} by number of steps",
        caption=f"{sizes}. {SEED_LINES}" + (f" {GREY_LINES}" if len(groups) > 1 else ""),
        alt=f"Lines over {counted(len(counts), 'length')} of problems for {counted(len(scores), 'member')}; counts in the "
        "table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", *(counted(n, "step") for n in counts)),
        rows=[
            (member.label, seed_name(run.seed), *cells(_steps(result.fields)))
            for member, score in scores
            for run, result in score.results
        ],
    )


def _by_group(scores: Scores) -> list[tuple[str, Scores]]:
    """Groups with their titles; a single group needs none."""
    groups = [(title, [entry for entry in scores if entry[0].group == name]) for name, title in GROUPS.items()]
    filled = [(title, inside) for title, inside in groups if inside]
    return filled if len(filled) > 1 else [("", inside) for _, inside in filled]


def _steps(fields: dict[str, Any]) -> dict[int, dict[str, int]]:
    return {int(n): cell for n, cell in (fields.get("by_steps") or {}).items()}


def _points(fields: dict[str, Any]) -> list[tuple[float, float]]:
    return [(n, 100 * cell["correct"] / cell["total"]) for n, cell in sorted(_steps(fields).items()) if cell["total"]]
