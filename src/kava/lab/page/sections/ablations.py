"""Whether the answers depend on the latents: the same weights with latents replaced, or another M, T or cue, at test time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from markupsafe import Markup

from kava.errors import DataError
from kava.lab.analysis.runs import Run, RunResult, same_items
from kava.lab.analysis.stats import McNemarTest, holm, mcnemar
from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, panels, result_of, split_part, value
from kava.lab.page.blocks import Block, Missing, PageSection, Paragraph, Plot, Subheading, Table
from kava.lab.page.charts import Grid, Lines, add_panel, curves, letters, line_style
from kava.lab.page.figures import GRID, MUTED, PAPER, WIDTH, colour, plot_with_tip
from kava.lab.page.formats import DASH, counted, p_value, percent, plot_name, seed_name
from kava.lab.page.heat import mean_of_known
from kava.lab.page.sections.accuracy import EVALUATE, names_beside_rows

ALPHA = 0.05
LINE = 0.115  # inches
SPACE = 1.6  # lines between members
KINDS = {"zero": "v", "mean": "o", "swap": "D", "noise": "s"}  # ablations and their marks
MEANING = (
    "Latents are replaced as the last pass gets them, the question stays readable. zero: zeros; mean: the average of the "
    "set; swap: those of the next question; noise: random vectors with the mean and spread of the set."
)
# What may be changed at test time, and the setting that it was trained with
SIZES = {"M": ("number of latents, M", "latent.num_tokens"), "T": ("number of rounds, T", "latent.num_iterations")}


@dataclass(frozen=True)
class ChangedResult:
    """A result with latents replaced, or another M, T or cue, beside that of the same run as trained."""

    member: StudyMember
    run: Run
    trained: RunResult | None
    changed: RunResult
    changes: dict[str, str]  # of M, T and cue
    paired: McNemarTest | None = None  # None where predictions were not kept
    p_holm: float | None = None

    @property
    def kind(self) -> str:
        return self.changed.ablate or ""


Ablations = Sequence[tuple[StudyMember, Sequence[ChangedResult]]]


def ablations(study: Study) -> PageSection:
    command = f"{EVALUATE} --ablate zero|mean|swap|noise"
    replaced = [part for label in study.sets for part in _replaced_latents(study, label)]
    changed = [part for label in study.sets for part in _changed_thinking(study, label)]
    parts = replaced or [Missing("No checkpoint was evaluated with its latents replaced.", command)]
    return PageSection("ablations", "What the answers depend on", (*parts, *changed))


def _changed_results(member: StudyMember, label: str) -> Iterator[ChangedResult]:
    for run in (run for run in member.runs if run.status in COUNTED):
        trained = result_of(run, label, member.mode)
        for result in run.results:
            changes = split_part(result.part)[1]
            if (result.ablate or changes) and label_of(result) == label and result.mode == member.mode:
                yield ChangedResult(member, run, trained, result, changes)


def _ablated_runs(member: StudyMember, label: str) -> list[ChangedResult]:
    """Every ablation of a member's runs with the result as trained, p corrected over all of them (Holm)."""
    ablated = [
        replace(entry, paired=_paired(entry.trained, entry.changed))
        for entry in _changed_results(member, label)
        if entry.trained is not None and entry.kind and not entry.changes
    ]
    corrected = holm([entry.paired.p if entry.paired is not None else None for entry in ablated])
    order = {kind: i for i, kind in enumerate(KINDS)}
    entries = [replace(entry, p_holm=p) for entry, p in zip(ablated, corrected, strict=True)]
    return sorted(entries, key=lambda entry: (order.get(entry.kind, len(order)), entry.run.seed or 0))


def _paired(plain: RunResult, ablated: RunResult) -> McNemarTest | None:
    same_items(plain, ablated)
    right, replaced = plain.right_by_item(), ablated.right_by_item()
    if not (right and replaced):
        return None
    if right.keys() != replaced.keys():
        raise DataError(
            f"{plain.path} and {ablated.path} have predictions of other items", "evaluate one of them again"
        )
    return mcnemar(list(right.values()), [replaced[key] for key in right])


def _replaced_latents(study: Study, label: str) -> Iterator[Block]:
    """How many seeds of each member each ablation changes significantly, and a figure of the accuracies."""
    ablations = [(member, entries) for member in study.members if (entries := _ablated_runs(member, label))]
    if not ablations:
        return
    of_set = [entry for _, entries in ablations for entry in entries]
    present = {entry.kind for entry in of_set}
    kinds = [kind for kind in KINDS if kind in present] + sorted(present - set(KINDS))
    yield Paragraph(
        f"On {label}, {counted(of_set[0].changed.total, 'item')}. Per seed, the same checkpoint with and without its own "
        "latents, exact paired tests (McNemar), Holm-corrected over a member's tests. Columns: seeds whose accuracy changes "
        f"significantly at {100 * ALPHA:g} %. Where none does, the latents are not used."
    )
    verdicts = [_verdict(member, entries, kinds) for member, entries in ablations]
    yield Table(("member", "verdict", *kinds), verdicts, f"Do the answers on {label} depend on the latents?")
    yield Plot(
        name=plot_name("ablations", label),
        title=f"Accuracy on {label} with the latents replaced",
        caption=f"Filled marks: as trained. Hollow marks: with latents replaced. Means over seeds, dots are seeds. {MEANING}",
        alt="; ".join(
            f"{member.label}: " + ", ".join(f"{kind} {percent(mean_of_known(_of_kind(entries, kind)))} %" for kind in kinds)
            for member, entries in ablations
        ),
        size=(WIDTH, 0.75 + LINE * len(ablations) * (len(kinds) + SPACE)),
        draw=lambda figure: _draw(figure, ablations, kinds),
        header=("member", "seed", "latents", "as trained, %", "replaced, %", "difference", "only trained right",
                "only replaced right", "exact paired p", "p, Holm"),
        rows=[_ablation_row(entry) for entry in of_set],
    )  # fmt: skip


def _verdict(member: StudyMember, entries: Sequence[ChangedResult], kinds: Sequence[str]) -> Sequence[Any]:
    """Whether a member's answers depend on the latents, and in how many seeds each ablation changes the accuracy."""
    p_values = {kind: [e.p_holm for e in entries if e.kind == kind and e.p_holm is not None] for kind in kinds}
    changed = {kind: sum(p < ALPHA for p in of_kind) for kind, of_kind in p_values.items()}
    cells = [f"{changed[kind]} of {counted(len(p_values[kind]), 'seed')}" if p_values[kind] else DASH for kind in kinds]
    used = "the answers depend on the latents" if any(changed.values()) else Markup("<b>the latents are not used</b>")
    return member.label, used if any(p_values.values()) else "not tested: predictions were not kept", *cells


def _ablation_row(entry: ChangedResult) -> Sequence[Any]:
    trained, replaced = (result.accuracy for result in (entry.trained, entry.changed) if result is not None)
    only_trained, only_replaced, p = entry.paired or (DASH, DASH, None)
    accuracies = (percent(trained), percent(replaced), f"{100 * (replaced - trained):+.1f}")
    tests = (only_trained, only_replaced, p_value(p), p_value(entry.p_holm))
    return entry.member.label, seed_name(entry.run.seed), entry.kind, *accuracies, *tests


def _of_kind(entries: Sequence[ChangedResult], kind: str) -> list[float]:
    return [entry.changed.accuracy for entry in entries if entry.kind == kind]


def _draw(figure: Any, ablations: Ablations, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    step = len(kinds) + SPACE
    lines = len(ablations) * step
    left = 0.15 + letters(member for member, _ in ablations)
    axes = add_panel(figure, left, 0.35, WIDTH - left - 0.1, LINE * lines)
    hollow = {"linestyle": "none", "markerfacecolor": PAPER, "markeredgewidth": 0.9}
    for row, (member, entries) in enumerate(ablations):
        shade = colour(member.look)
        top = row * step
        mean = 100 * fmean({entry.run.folder: entry.trained.accuracy for entry in entries if entry.trained}.values())
        axes.axhline(top - 0.8, color=GRID, linewidth=0.5)
        plot_with_tip(
            axes, f"{member.label}, as trained: {mean:.1f} %", [mean], [top], **line_style(member, 5), zorder=3
        )
        for i, kind in enumerate(kinds, 1):
            values = [100 * accuracy for accuracy in _of_kind(entries, kind)]
            if values:
                y, replaced = top + i, 100 * fmean(_of_kind(entries, kind))
                axes.plot([mean, replaced], [top, y], color=shade, linewidth=0.5, alpha=0.5, zorder=1)
                axes.plot(values, [y] * len(values), "o", color=shade, markersize=1.8, alpha=0.5, markeredgecolor="none",
                          zorder=2)  # fmt: skip
                words = f"{member.label}, {kind}: {replaced:.1f} %"
                mark = {"marker": KINDS.get(kind, "X"), "color": shade, "markersize": 4, "zorder": 3, **hollow}
                plot_with_tip(axes, words, [replaced], [y], **mark)
    axes.set_ylim(lines - 0.8, -0.8)
    middles = [row * step + len(kinds) / 2 for row in range(len(ablations))]
    names_beside_rows(axes, middles, [member for member, _ in ablations])
    handles = [Line2D([], [], marker="o", color=MUTED, linestyle="none", label="as trained")]
    handles += [Line2D([], [], marker=KINDS.get(kind, "X"), color=MUTED, label=kind, **hollow) for kind in kinds]
    place = {"loc": "upper left", "bbox_to_anchor": (left / WIDTH, 1 - 0.06 / figure.get_size_inches()[1])}
    figure.legend(handles=handles, ncols=6, handletextpad=0.3, columnspacing=1.6, handlelength=1, **place)


def _changed_thinking(study: Study, label: str) -> Iterator[Block]:
    """Curves over M and over T, or a table where only something else was changed."""
    changed = [e for member in study.members for e in _changed_results(member, label) if not e.kind]
    if not changed:
        return
    title = f"Accuracy on {label} with another M, T or cue at test time"
    header = ("member", "seed", "changed at test time", "accuracy, %", "as trained, %")
    rows = [
        (entry.member.label, seed_name(entry.run.seed),
         ", ".join(f"{name} = {new}" if name in SIZES else f"{name} {new}" for name, new in entry.changes.items()),
         percent(entry.changed.accuracy), percent(entry.trained.accuracy if entry.trained else None))
        for entry in changed
    ]  # fmt: skip
    lines = {letter: by_member for letter in SIZES if (by_member := _lines_over(letter, changed))}
    members = [member for member in study.members if any(member.label in by_member for by_member in lines.values())]
    if not members:
        yield from (Subheading(title), Table(header, rows, title))
        return
    titles = {letter: f"accuracy, %, by {SIZES[letter][0]}" for letter in lines}
    grid = Grid(titles, panels(members), height=1.6)

    def draw(figure: Any) -> None:
        for axes, letter, group in grid.panels(figure):
            curves(axes, group, lines[letter], marks=20)
            axes.set_xticks(sorted({x for seeds in lines[letter].values() for p in seeds.values() for x, _ in p}))

    yield Plot(
        name=plot_name("thinking", label),
        title=title,
        caption="The same weights, asked to think with more or fewer latents, or for more or fewer rounds. Thick lines are "
        "means over seeds, at the values that all seeds have.",
        alt="Lines over M and T; every value is in the table below.",
        size=grid.size,
        draw=draw,
        header=header,
        rows=rows,
    )


def _lines_over(letter: str, changed: Sequence[ChangedResult]) -> Lines:
    """Accuracy over the values of M (or T) alone, the trained one included."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for entry in changed:
        if set(entry.changes) == {letter}:
            points = lines.setdefault(entry.member.label, {}).setdefault(seed_name(entry.run.seed), [])
            size = value(entry.run.recipe, SIZES[letter][1])
            if not points and entry.trained is not None and size is not None:
                points.append((float(size), 100 * entry.trained.accuracy))
            points.append((float(entry.changes[letter]), 100 * entry.changed.accuracy))
            points.sort()
    return lines
