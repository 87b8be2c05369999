"""Whether the answers depend on the latents: the same weights with latents replaced, or another M, T or cue, at test time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from markupsafe import Markup

from kava.errors import DataError
from kava.lab.analysis.runs import Run, RunResult, same_items
from kava.lab.analysis.stats import McNemarTest, holm, mcnemar
from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, panels, result_of, split_part, value
from kava.lab.page.blocks import Block, Missing, PageSection, Paragraph, Plot, Row, Subheading, Table
from kava.lab.page.charts import Grid, Lines, add_panel, curves, letters, line_style, share_scale, short
from kava.lab.page.figures import GRID, MUTED, PAPER, WIDTH, tip
from kava.lab.page.formats import DASH, counted, p_value, percent, plot_name, seed_name
from kava.lab.page.sections.accuracy import names_beside_rows

ALPHA = 0.05
LINE = 0.115  # inches
SPACE = 1.6  # lines between members
KINDS = {"zero": "v", "mean": "o", "swap": "D", "noise": "s"}  # ablations and their marks
MEANING = (
    "Latents are replaced as the last pass gets them, the question stays readable. zero: zeros; mean: the average of the "
    "set; swap: those of the next question; noise: random vectors with the mean and spread of the set."
)
COMMAND = "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET --ablate zero|mean|swap|noise"
# Another M, T or cue at test time
TITLES = {"M": "number of latents, M", "T": "number of rounds, T"}
KEYS = {"M": "latent.num_tokens", "T": "latent.num_iterations"}
HEADER = ("member", "seed", "changed at test time", "accuracy, %", "as trained, %")


@dataclass(frozen=True)
class AblatedRun:
    """One run with and without its own latents; `paired` is None where predictions were not kept."""

    run: Run
    kind: str
    plain: RunResult
    ablated: RunResult
    paired: McNemarTest | None
    p_holm: float | None = None


Ablations = dict[str, list[AblatedRun]]  # by member's label
ChangedResult = tuple[Run, RunResult | None, dict[str, str], RunResult]  # run, as trained, changes of M, T, cue, result


def ablations(study: Study) -> PageSection:
    parts: list[Block] = []
    for label in study.sets:
        of_set = {member.label: ablated_runs(member, label) for member in study.members}
        members = [member for member in study.members if of_set[member.label]]
        if members:
            parts += [*_verdicts(label, members, of_set), _plot(label, members, of_set)]
    parts = parts or [Missing("No checkpoint was evaluated with its latents replaced.", COMMAND)]
    changed = [part for label in study.sets for part in _changed_thinking(study, label)]
    return PageSection("ablations", "What the answers depend on", (*parts, *changed))


def ablated_runs(member: StudyMember, label: str) -> list[AblatedRun]:
    """Every ablation of a member's runs with the result as trained, p corrected over all of them (Holm)."""
    ablated = []
    for run, plain, changes, result in _changed_results(member, label):
        if plain is not None and result.ablate is not None and not changes:
            ablated.append(AblatedRun(run, result.ablate, plain, result, _paired(plain, result)))
    tests = {i: entry.paired.p for i, entry in enumerate(ablated) if entry.paired is not None}
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    order = {kind: i for i, kind in enumerate(KINDS)}
    entries = [replace(entry, p_holm=corrected.get(i)) for i, entry in enumerate(ablated)]
    return sorted(entries, key=lambda entry: (order.get(entry.kind, len(order)), entry.run.seed or 0))


def _paired(plain: RunResult, ablated: RunResult) -> McNemarTest | None:
    same_items(plain, ablated)
    predictions = [result.predictions() for result in (plain, ablated)]
    if not all(predictions):
        return None
    try:
        right, replaced = ({item["id"]: bool(item["correct"]) for item in items} for items in predictions)
    except KeyError as error:
        raise DataError(f"predictions beside {plain.path} or {ablated.path} lack {error}", "evaluate again") from error
    if right.keys() != replaced.keys():
        raise DataError(
            f"{plain.path} and {ablated.path} have predictions of other items", "evaluate one of them again"
        )
    return mcnemar(list(right.values()), [replaced[key] for key in right])


def _verdicts(label: str, members: Sequence[StudyMember], ablations: Ablations) -> list[Block]:
    """Per member whether its answers depend on the latents, and in how many seeds each ablation changes the accuracy."""
    kinds = _kinds(ablations)
    rows: list[Row] = []
    for member in members:
        tested = [entry for entry in ablations[member.label] if entry.p_holm is not None]
        changed = [entry for entry in tested if entry.p_holm is not None and entry.p_holm < ALPHA]
        cells = []
        for kind in kinds:
            seeds = sum(entry.kind == kind for entry in tested)
            cells.append(f"{sum(e.kind == kind for e in changed)} of {counted(seeds, 'seed')}" if seeds else DASH)
        verdict = "the answers depend on the latents" if changed else Markup("<b>the latents are not used</b>")
        rows.append((member.label, verdict if tested else "not tested: predictions were not kept", *cells))
    total = ablations[members[0].label][0].plain.total
    note = Paragraph(
        f"On {label}, {counted(total, 'item')}. Per seed, the same checkpoint with and without its own latents, exact "
        "paired tests (McNemar), Holm-corrected over a member's tests. Columns: seeds whose accuracy changes "
        f"significantly at {100 * ALPHA:g} %. Where none does, the latents are not used."
    )
    return [note, Table(("member", "verdict", *kinds), rows, f"Do the answers on {label} depend on the latents?")]


def _plot(label: str, members: Sequence[StudyMember], ablations: Ablations) -> Plot:
    rows: list[Row] = []
    for member in members:
        for entry in ablations[member.label]:
            b, c, p = entry.paired or (DASH, DASH, None)
            rows.append((
                member.label, seed_name(entry.run.seed), entry.kind, percent(entry.plain.accuracy),
                percent(entry.ablated.accuracy), f"{100 * (entry.ablated.accuracy - entry.plain.accuracy):+.1f}", b, c,
                p_value(p), p_value(entry.p_holm),
            ))  # fmt: skip
    kinds = _kinds(ablations)
    alt = "; ".join(
        f"{member.label}: " + ", ".join(f"{kind} {percent(_mean(ablations[member.label], kind))} %" for kind in kinds)
        for member in members
    )
    return Plot(
        name=plot_name("ablations", label),
        title=f"Accuracy on {label} with the latents replaced",
        caption=f"Filled marks: as trained. Hollow marks: with latents replaced. Means over seeds, dots are seeds. {MEANING}",
        alt=alt,
        size=(WIDTH, 0.75 + LINE * len(members) * (len(kinds) + SPACE)),
        draw=lambda figure: _draw(figure, members, ablations, kinds),
        header=("member", "seed", "latents", "as trained, %", "replaced, %", "difference", "only trained right",
                "only replaced right", "exact paired p", "p, Holm"),
        rows=rows,
    )  # fmt: skip


def _draw(figure: Any, members: Sequence[StudyMember], ablations: Ablations, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    step = len(kinds) + SPACE
    lines = len(members) * step
    left = 0.15 + letters(members)
    axes = add_panel(figure, left, 0.35, WIDTH - left - 0.1, LINE * lines)
    for row, member in enumerate(members):
        entries = ablations[member.label]
        shade = line_style(member)["color"]
        top = row * step
        mean = 100 * fmean({entry.run.folder: entry.plain.accuracy for entry in entries}.values())
        axes.axhline(top - 0.8, color=GRID, linewidth=0.5)
        (mark,) = axes.plot([mean], [top], **line_style(member, 5), zorder=3)
        tip(mark, f"{member.label}, as trained: {mean:.1f} %")
        for i, kind in enumerate(kinds, 1):
            values = [100 * entry.ablated.accuracy for entry in entries if entry.kind == kind]
            if not values:
                continue
            y, replaced = top + i, 100 * (_mean(entries, kind) or 0)
            axes.plot([mean, replaced], [top, y], color=shade, linewidth=0.5, alpha=0.5, zorder=1)
            axes.plot(values, [y] * len(values), "o", color=shade, markersize=1.8, alpha=0.5, markeredgecolor="none",
                      zorder=2)  # fmt: skip
            (mark,) = axes.plot([replaced], [y], KINDS.get(kind, "X"), color=shade, markersize=4, zorder=3,
                                markerfacecolor=PAPER, markeredgewidth=0.9)  # fmt: skip
            tip(mark, f"{member.label}, {kind}: {replaced:.1f} %")
    axes.set_ylim(lines - 0.8, -0.8)
    middles = [row * step + len(kinds) / 2 for row in range(len(members))]
    names_beside_rows(axes, middles, [short(member.label) for member in members])
    handles = [Line2D([], [], marker="o", color=MUTED, linestyle="none", label="as trained")]
    handles += [
        Line2D([], [], marker=KINDS.get(kind, "X"), color=MUTED, linestyle="none", markerfacecolor=PAPER,
               markeredgewidth=0.9, label=kind) for kind in kinds
    ]  # fmt: skip
    top_edge = 1 - 0.06 / figure.get_size_inches()[1]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left / WIDTH, top_edge), ncols=6,
                  handletextpad=0.3, columnspacing=1.6, handlelength=1)  # fmt: skip


def _kinds(ablations: Ablations) -> list[str]:
    kinds = {entry.kind for entries in ablations.values() for entry in entries}
    return [kind for kind in KINDS if kind in kinds] + sorted(kinds - set(KINDS))


def _mean(entries: Sequence[AblatedRun], kind: str) -> float | None:
    values = [entry.ablated.accuracy for entry in entries if entry.kind == kind]
    return fmean(values) if values else None


def _changed_thinking(study: Study, label: str) -> list[Block]:
    """Curves over M and over T, or a table where only something else was changed; [] where nothing was."""
    rows = [row for member in study.members for row in _changed_rows(member, label)]
    if not rows:
        return []
    every = {letter: _changed_lines(study, label, letter) for letter in TITLES}
    lines = {letter: by_member for letter, by_member in every.items() if by_member}
    members = [member for member in study.members if any(member.label in by_member for by_member in lines.values())]
    title = f"Accuracy on {label} with another M, T or cue at test time"
    if not members:
        return [Subheading(title), Table(HEADER, rows, title)]
    grid = Grid([f"accuracy, %, by {TITLES[letter]}" for letter in lines], panels(members), height=1.6)

    def draw(figure: Any) -> None:
        for by_member, row in zip(lines.values(), grid.axes(figure), strict=True):
            for axes, group in row:
                curves(axes, group, by_member, marks=20)
                axes.set_xticks(sorted({x for seeds in by_member.values() for p in seeds.values() for x, _ in p}))
            share_scale(row)

    plot = Plot(
        name=plot_name("thinking", label),
        title=title,
        caption="The same weights, asked to think with more or fewer latents, or for more or fewer rounds. Thick lines are "
        "means over seeds, at the values that all seeds have.",
        alt="Lines over M and T; every value is in the table below.",
        size=grid.size,
        draw=draw,
        header=HEADER,
        rows=rows,
    )
    return [plot]


def _changed_results(member: StudyMember, label: str) -> Iterator[ChangedResult]:
    """Every result with latents, M, T or cue changed at test time, with that of the same run as trained."""
    for run in (run for run in member.runs if run.status in COUNTED):
        as_trained = result_of(run, label, member.mode)
        for result in run.results:
            changes = split_part(result.part)[1]
            changed = result.ablate is not None or changes
            if changed and label_of(result) == label and result.mode == member.mode:
                yield run, as_trained, changes, result


def _changed_rows(member: StudyMember, label: str) -> list[Row]:
    rows: list[Row] = []
    for run, plain, changes, result in _changed_results(member, label):
        if result.ablate is None:
            what = ", ".join(f"{name} = {new}" if name in TITLES else f"{name} {new}" for name, new in changes.items())
            as_trained = DASH if plain is None else percent(plain.accuracy)
            rows.append((member.label, seed_name(run.seed), what, percent(result.accuracy), as_trained))
    return rows


def _changed_lines(study: Study, label: str, letter: str) -> Lines:
    """Accuracy over the values of M (or T) alone, the trained one included."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for member in study.members:
        for run, plain, changes, result in _changed_results(member, label):
            if set(changes) != {letter} or result.ablate is not None:
                continue
            points = lines.setdefault(member.label, {}).setdefault(seed_name(run.seed), [])
            trained = value(run.recipe, KEYS[letter])
            if not points and plain is not None and trained is not None:
                points.append((float(trained), 100 * plain.accuracy))
            points.append((float(changes[letter]), 100 * result.accuracy))
            points.sort()
    return lines
