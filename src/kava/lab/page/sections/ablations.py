"""What the answers depend on: every run against itself with its latents replaced at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from kava.errors import DataError
from kava.lab.analysis.runs import Run, RunResult, same_items
from kava.lab.analysis.stats import McNemarTest, holm, mcnemar
from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, result_of, split_part
from kava.lab.page.charts import letters, line_style, short
from kava.lab.page.figures import INK, LIGHT, MUTED, WIDTH, Plot, tip
from kava.lab.page.markup import (
    NONE,
    Html,
    Row,
    counted,
    join,
    missing,
    p_value,
    paragraph,
    percent,
    seed_name,
    table,
    tag,
)
from kava.lab.page.sections.accuracy import plot_name
from kava.lab.page.sections.section import Section
from kava.lab.page.sections.thinking import changed_thinking

ALPHA = 0.05
KINDS = {"zero": "v", "mean": "o", "swap": "D", "noise": "s"}  # ablations and their marks
MEANING = (
    "Latents are replaced as the last pass gets them, the question stays readable. zero: zeros; mean: the average of the "
    "set; swap: those of the next question; noise: random vectors with the mean and spread of the set."
)
COMMAND = "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET --ablate zero|mean|swap|noise"


@dataclass(frozen=True)
class Pair:
    """One run with and without its own latents; `paired` is None where predictions were not kept."""

    run: Run
    kind: str
    plain: RunResult
    ablated: RunResult
    paired: McNemarTest | None
    p_holm: float | None = None


Found = dict[str, list[Pair]]  # member's label -> pairs


def ablations(study: Study) -> Section:
    parts: list[Any] = []
    for label in study.sets:
        found = {member.label: pairs(member, label) for member in study.members}
        members = [member for member in study.members if found[member.label]]
        if members:
            parts += [_verdicts(label, members, found), _plot(label, members, found)]
    parts = parts or [missing("No checkpoint was evaluated with its latents replaced.", COMMAND)]
    changed = [part for label in study.sets for part in changed_thinking(study, label)]
    return Section("ablations", "What the answers depend on", (*parts, *changed))


def pairs(member: StudyMember, label: str) -> list[Pair]:
    """Every ablation of a member's runs beside the plain result, p corrected over all of them (Holm)."""
    found = []
    for run in (run for run in member.runs if run.status in COUNTED):
        plain = result_of(run, label, member.mode)
        for result in run.results:
            same = label_of(result) == label and result.mode == member.mode and not split_part(result.part)[1]
            if plain is not None and result.ablate is not None and same:
                found.append(Pair(run, result.ablate, plain, result, _paired(plain, result)))
    tested = [pair for pair in found if pair.paired is not None]
    corrected = holm([pair.paired.p for pair in tested if pair.paired is not None])
    by_place = {id(pair): p for pair, p in zip(tested, corrected, strict=True)}
    order = {kind: i for i, kind in enumerate(KINDS)}
    done = [replace(pair, p_holm=by_place.get(id(pair))) for pair in found]
    return sorted(done, key=lambda pair: (order.get(pair.kind, len(order)), pair.run.seed or 0))


def _paired(first: RunResult, second: RunResult) -> McNemarTest | None:
    same_items(first, second)
    one, two = first.predictions(), second.predictions()
    if not one or not two:
        return None
    try:
        right = {item["id"]: bool(item["correct"]) for item in one}
        other = {item["id"]: bool(item["correct"]) for item in two}
    except KeyError as error:
        raise DataError(f"predictions beside {first.path} or {second.path} lack {error}", "evaluate again") from error
    if right.keys() != other.keys():
        raise DataError(f"{first.path} and {second.path} have predictions of other items", "evaluate one of them again")
    return mcnemar(list(right.values()), [other[key] for key in right])


def _verdicts(label: str, members: Sequence[StudyMember], found: Found) -> Html:
    """Per member whether its answers depend on the latents, and how many seeds say so with which ablation."""
    kinds = _kinds(found)
    rows: list[Row] = []
    for member in members:
        tested = [pair for pair in found[member.label] if pair.p_holm is not None]
        changed = [pair for pair in tested if pair.p_holm is not None and pair.p_holm < ALPHA]
        cells = []
        for kind in kinds:
            of_kind = [pair for pair in tested if pair.kind == kind]
            count = sum(pair in changed for pair in of_kind)
            cells.append(f"{count} of {counted(len(of_kind), 'seed')}" if of_kind else NONE)
        if not tested:
            word: Html | str = "not tested: predictions were not kept"
        elif changed:
            word = "the answers depend on the latents"
        else:
            word = tag("b", "the latents are not used")
        rows.append((member.label, word, *cells))
    total = found[members[0].label][0].plain.total
    note = paragraph(
        f"On {label}, {counted(total, 'item')}. Per seed, the same checkpoint with and without its own latents, exact "
        "paired tests (McNemar), Holm-corrected over a member's tests. Columns: seeds whose accuracy changes "
        f"significantly at {100 * ALPHA:g} %. Where none does, the latents are not used."
    )
    return join([note, table(("member", "verdict", *kinds), rows, f"Do the answers on {label} depend on the latents?")])


def _plot(label: str, members: Sequence[StudyMember], found: Found) -> Plot:
    rows: list[Row] = []
    for member in members:
        for pair in found[member.label]:
            b, c, p = pair.paired or (NONE, NONE, None)
            rows.append((
                member.label, seed_name(pair.run.seed), pair.kind, percent(pair.plain.accuracy),
                percent(pair.ablated.accuracy), f"{100 * (pair.ablated.accuracy - pair.plain.accuracy):+.1f}", b, c,
                NONE if p is None else p_value(p), NONE if pair.p_holm is None else p_value(pair.p_holm),
            ))  # fmt: skip
    kinds = _kinds(found)
    alt = "; ".join(
        f"{member.label}: " + ", ".join(f"{kind} {percent(_mean(found[member.label], kind))} %" for kind in kinds)
        for member in members
    )
    lines = len(members) * (len(kinds) + 1.6)
    return Plot(
        name=plot_name("ablations", label),
        title=f"Accuracy on {label} with the latents replaced",
        caption=f"Filled marks: as trained. Hollow marks: with latents replaced. Means over seeds, dots are seeds. {MEANING}",
        alt=alt,
        size=(WIDTH, 0.75 + 0.115 * lines),
        draw=lambda figure: _draw(figure, members, found, kinds),
        header=("member", "seed", "latents", "as trained, %", "replaced, %", "difference", "only trained right",
                "only replaced right", "exact paired p", "p, Holm"),
        rows=rows,
    )  # fmt: skip


def _draw(figure: Any, members: Sequence[StudyMember], found: Found, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    step = len(kinds) + 1.6
    lines = len(members) * step
    height = 0.75 + 0.115 * lines
    left = 0.15 + letters(members)
    one = figure.add_axes((left / WIDTH, 0.4 / height, (WIDTH - left - 0.1) / WIDTH, 0.115 * lines / height))
    for row, member in enumerate(members):
        inside = found[member.label]
        shade = line_style(member)["color"]
        top = row * step
        plain = {pair.run.folder: pair.plain.accuracy for pair in inside}
        mean = 100 * fmean(plain.values())
        one.axhline(top - 0.8, color=LIGHT["grid"], linewidth=0.5)
        (mark,) = one.plot([mean], [top], **line_style(member, 5), zorder=3)
        tip(mark, f"{member.label}, as trained: {mean:.1f} %")
        for i, kind in enumerate(kinds):
            pairs_of = [pair for pair in inside if pair.kind == kind]
            if not pairs_of:
                continue
            y, replaced = top + 1 + i, 100 * (_mean(inside, kind) or 0)
            one.plot([mean, replaced], [top, y], color=shade, linewidth=0.5, alpha=0.5, zorder=1)
            one.plot([100 * pair.ablated.accuracy for pair in pairs_of], [y] * len(pairs_of), "o", color=shade,
                     markersize=1.8, alpha=0.5, markeredgecolor="none", zorder=2)  # fmt: skip
            (mark,) = one.plot([replaced], [y], KINDS.get(kind, "X"), color=shade, markersize=4, zorder=3,
                               markerfacecolor=LIGHT["paper"], markeredgewidth=0.9)  # fmt: skip
            tip(mark, f"{member.label}, {kind}: {replaced:.1f} %")
    middles = [row * step + len(kinds) / 2 for row in range(len(members))]
    one.set_yticks(middles, [short(member.label) for member in members])
    one.tick_params(axis="y", labelcolor=INK)
    one.set_ylim(lines - 0.8, -0.8)
    one.grid(axis="y", visible=False)
    one.spines["left"].set_visible(False)
    one.set_xlabel("accuracy, %", labelpad=2)
    handles = [Line2D([], [], marker="o", color=MUTED, linestyle="none", label="as trained")]
    handles += [
        Line2D([], [], marker=KINDS.get(kind, "X"), color=MUTED, linestyle="none", markerfacecolor=LIGHT["paper"],
               markeredgewidth=0.9, label=kind) for kind in kinds
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(left / WIDTH, 1 - 0.06 / height), ncols=6,
                  handletextpad=0.3, columnspacing=1.6, handlelength=1)  # fmt: skip


def _kinds(found: Found) -> list[str]:
    there = {pair.kind for pairs_of in found.values() for pair in pairs_of}
    return [kind for kind in KINDS if kind in there] + sorted(there - set(KINDS))


def _mean(found: Sequence[Pair], kind: str) -> float | None:
    values = [pair.ablated.accuracy for pair in found if pair.kind == kind]
    return fmean(values) if values else None
