"""How much each teacher counts: over training, by student layer, by question and by kind of question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import LogsByMember, Routing
from kava.lab.analysis.study import Group, Look, StudyMember, with_looks
from kava.lab.page.charts import Grid, Lines, curves, share_scale, short
from kava.lab.page.figures import Plot, colour
from kava.lab.page.heat import SHARE, Panels, heat, name_ticks, step_ticks, thinned_columns
from kava.lab.page.markup import Html, counted, listed, number, paragraph, seed_name
from kava.lab.page.sections.accuracy import plot_name
from kava.lab.page.sections.questions import by_question
from kava.lab.page.sections.training import thinned

Routed = Mapping[str, Mapping[int | None, Routing]]
PER_FIGURE = 3  # members side by side
HEAD = 24  # letters of a name above them
ENTROPY = StudyMember("entropy", "", "", "kv", (), Look(5, "", "-"))


def routing(found: LogsByMember, looks: Mapping[str, StudyMember]) -> list[Plot | Html]:
    """Figures of the weights; a sentence for members whose weights never move."""
    every: Routed = {
        label: {seed: one.routing for seed, one in seeds.items() if one.routing is not None}
        for label, seeds in found.items()
    }
    moving = {label: seeds for label, seeds in every.items() if any(map(_moves, seeds.values()))}
    still = [label for label, seeds in every.items() if seeds and label not in moving]
    parts: list[Plot | Html] = []
    if still:
        parts.append(paragraph(f"The weights of {listed(still)} stay as they were set and are not drawn."))
    parts += _over_time(moving, looks)
    parts += [plot for label, seeds in moving.items() for plot in _by_layer(label, seeds, looks)]
    return [*parts, *by_question(found, looks)]


def _moves(one: Routing) -> bool:
    """Whether any weight differs between updates or between layers."""
    rows = [*one.weights, *(layer for layers in one.by_layer for layer in layers)]
    return any(abs(a - b) > 1e-6 for row in rows for a, b in zip(row, rows[0], strict=True))


# --- over training ------------------------------------------------------------------------------------------------


def _over_time(moving: Routed, looks: Mapping[str, StudyMember]) -> list[Plot]:
    parts = enumerate(by_figure(list(moving)), 1)
    return [_lines_plot(i, {label: moving[label] for label in part}, looks) for i, part in parts]


def by_figure(labels: Sequence[str]) -> list[Sequence[str]]:
    """At most three members side by side, as many in every figure as can be."""
    size = ceil(len(labels) / max(1, ceil(len(labels) / PER_FIGURE)))
    return [labels[i : i + size] for i in range(0, len(labels), size or 1)]


def _lines_plot(index: int, routed: Routed, looks: Mapping[str, StudyMember]) -> Plot:
    groups = [
        Group(short(label, HEAD), tuple(looks[name] for name in _names(seeds))) for label, seeds in routed.items()
    ]
    grid = Grid(("weight of each teacher", "entropy of the weights / its largest, ln S"), groups, xlabel="updates")
    many = max(len(seeds) for seeds in routed.values()) > 1

    def draw(figure: Any) -> None:
        above, below = grid.axes(figure)
        for (one, group), (other, _), seeds in zip(above, below, routed.values(), strict=True):
            curves(one, group, _weight_lines(seeds))
            curves(other, Group("", (ENTROPY,)), {"entropy": {seed_name(s): _entropy(r) for s, r in seeds.items()}})
            one.set_ylim(-0.03, 1.03)
            other.set_ylim(-0.03, 1.03)
        for row in (above, below):
            share_scale([one for one, _ in row])

    return Plot(
        name=f"routing_{index}",
        title="Weights of the teachers over training" + (f", {next(iter(routed))}" if len(routed) == 1 else ""),
        caption="Means over the questions of an update. An entropy of 1: all teachers count alike; near 0: one of them alone "
        "is followed." + (" Thin lines are seeds, thick ones their mean." if many else ""),
        alt="Lines over updates, one for each teacher, and the entropy; first and last values in the table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", "updates", "teacher", "weight, first", "weight, last", "entropy, last", "temperature, last"),
        rows=[
            (label, seed_name(seed), f"{one.steps[-1]:,}", name, number(one.weights[0][i], 3), number(one.weights[-1][i], 3),
             number(one.entropy[-1], 3), number(one.temperature[-1], 3))
            for label, seeds in routed.items()
            for seed, one in seeds.items()
            for i, name in enumerate(one.teachers)
        ],
    )  # fmt: skip


def _names(seeds: Mapping[int | None, Routing]) -> list[str]:
    return list(dict.fromkeys(name for one in seeds.values() for name in one.teachers))


def _weight_lines(seeds: Mapping[int | None, Routing]) -> Lines:
    return {
        name: {
            seed_name(seed): thinned([(step, row[i]) for step, row in zip(one.steps, one.weights, strict=True)])
            for seed, one in seeds.items()
            for i, other in enumerate(one.teachers)
            if other == name
        }
        for name in _names(seeds)
    }


def _entropy(one: Routing) -> Sequence[tuple[float, float]]:
    most = log(max(2, len(one.teachers)))
    points = zip(one.steps, one.entropy, strict=True)
    return thinned([(step, entropy / most) for step, entropy in points if entropy is not None])


# --- by layer -----------------------------------------------------------------------------------------------------


def _by_layer(label: str, seeds: Mapping[int | None, Routing], looks: Mapping[str, StudyMember]) -> list[Plot]:
    """A panel per teacher, layers over updates; [] where layers share their weights."""
    inside = {seed: one for seed, one in seeds.items() if one.by_layer}
    if not inside:
        return []
    first = next(iter(inside.values()))
    steps = sorted(set.intersection(*(set(one.steps) for one in inside.values())))
    layers = len(first.by_layer[0])
    if not steps:
        return []
    means = {
        name: [
            [fmean(_at(one, step)[layer][i] for one in inside.values()) for step in steps] for layer in range(layers)
        ]
        for i, name in enumerate(first.teachers)
    }
    panels = Panels(len(means), min(3, len(means)), height=min(2.4, max(0.8, 0.1 * layers)))

    def draw(figure: Any) -> None:
        for one, (name, rows) in zip(panels.axes(figure), means.items(), strict=True):
            shown, cells = thinned_columns(steps, rows)
            heat(one, cells, SHARE, colour(looks[name].look))
            step_ticks(one, shown, most=5)
            name_ticks(one.yaxis, range(layers), most=int(panels.height / 0.12))
            one.set_title(short(name), x=0, pad=4)
            one.set_xlabel("updates", labelpad=2)
            one.set_ylabel("student layer", labelpad=2)

    over = f" Means over {counted(len(inside), 'seed')}." if len(inside) > 1 else ""
    return [
        Plot(
            name=plot_name("routing_layers", label),
            title=f"Weights by student layer over training, {label}",
            caption=f"Full colour is a weight of 1, no colour 0; the first layer is on top.{over}",
            alt=f"A panel of {layers} layers by {len(steps)} updates for each of {listed(list(means))}.",
            size=panels.size,
            draw=draw,
            header=("layer", *(f"{name}, {when}" for name in means for when in ("first", "last"))),
            rows=[(i, *(number(rows[i][k], 3) for rows in means.values() for k in (0, -1))) for i in range(layers)],
        )
    ]


def _at(one: Routing, step: int) -> tuple[tuple[float, ...], ...]:
    return one.by_layer[one.steps.index(step)]


def looks_of(found: LogsByMember, more: Sequence[str]) -> dict[str, StudyMember]:
    """Teacher's name -> how it is drawn, the same in every figure; `more` are names that only the logs have."""
    names: dict[str, None] = {}
    for seeds in found.values():
        for one in seeds.values():
            names |= dict.fromkeys(one.routing.teachers if one.routing else ())
            names |= dict.fromkeys(one.samples.teachers if one.samples else ())
    names |= dict.fromkeys(more)
    return {member.label: member for member in with_looks([StudyMember(name, "", "", "kv", ()) for name in names])}
