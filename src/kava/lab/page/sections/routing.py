"""The weight of each teacher over training, by student layer, by question and by kind of question."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import ceil, log
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import Routing, RoutingSamples
from kava.lab.analysis.study import Group, Look, StudyMember
from kava.lab.page.blocks import Block, Paragraph, Plot
from kava.lab.page.charts import Grid, Lines, Points, curves, short
from kava.lab.page.figures import INK, MUTED, PAPER, colour
from kava.lab.page.formats import SEED_LINES, counted, listed, number, percent, plot_name, seed_name
from kava.lab.page.heat import SHARE, Panels, Rows, Scale, add_rectangles, heat, mean_over_seeds, name_ticks
from kava.lab.page.sections.training import thinned

RoutingBySeed = Mapping[int | None, Routing]
SamplesBySeed = Mapping[int | None, RoutingSamples]
Looks = Mapping[str, StudyMember]  # how a teacher is drawn, by its name
SOFT = Scale(0.0, 1.6, empty=True)  # of shares with words on them
PER_FIGURE = 3  # members side by side
HEAD = 24  # letters of a name above them
ENTROPY = StudyMember("entropy", "", "", "kv", (), Look(5, "", "-"))


def routing(logs: Mapping[str, RoutingBySeed], looks: Looks) -> Iterator[Block]:
    """Figures of the weights of each member; a sentence for members whose weights never change."""
    changing = {label: seeds for label, seeds in logs.items() if any(map(_changes, seeds.values()))}
    constant = [label for label in logs if label not in changing]
    if constant:
        yield Paragraph(f"The weights of {listed(constant)} stay as they were set and are not drawn.")
    for i, labels in enumerate(by_figure(list(changing)), 1):
        yield _over_time(i, {label: changing[label] for label in labels}, looks)
    for label, seeds in changing.items():
        yield from _by_layer(label, seeds, looks)


def _changes(logged: Routing) -> bool:
    """Whether any weight differs between updates or between layers."""
    rows = [*logged.weights, *(layer for layers in logged.by_layer for layer in layers)]
    return any(abs(a - b) > 1e-6 for row in rows for a, b in zip(row, rows[0], strict=True))


def by_figure(labels: Sequence[str]) -> list[Sequence[str]]:
    """Members by figure: at most three side by side, about as many in each."""
    size = ceil(len(labels) / max(1, ceil(len(labels) / PER_FIGURE)))
    return [labels[i : i + size] for i in range(0, len(labels), size or 1)]


def _over_time(index: int, logs: Mapping[str, RoutingBySeed], looks: Looks) -> Plot:
    groups = [Group(short(label, HEAD), tuple(looks[name] for name in _names(seeds))) for label, seeds in logs.items()]
    titles = {"weight": "weight of each teacher", "entropy": "entropy of the weights / its largest, ln S"}
    grid = Grid(titles, groups, xlabel="updates")
    many = max(len(seeds) for seeds in logs.values()) > 1

    def draw(figure: Any) -> None:
        for (axes, measure, group), seeds in zip(grid.panels(figure), [*logs.values()] * len(titles), strict=True):
            if measure == "weight":
                curves(axes, group, _weight_lines(seeds))
            else:
                curves(axes, Group("", (ENTROPY,)), {"entropy": {seed_name(s): _entropy(r) for s, r in seeds.items()}})
            axes.set_ylim(-0.03, 1.03)

    return Plot(
        name=f"routing_{index}",
        title="Weights of the teachers over training" + (f", {next(iter(logs))}" if len(logs) == 1 else ""),
        caption="Means over the questions of an update. An entropy of 1: all teachers count alike; near 0: one of them alone "
        "is followed." + (f" {SEED_LINES}" if many else ""),
        alt="Lines over updates, one for each teacher, and the entropy; first and last values in the table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", "updates", "teacher", "weight, first", "weight, last", "entropy, last", "temperature, last"),
        rows=[
            (label, seed_name(seed), f"{r.steps[-1]:,}", name, number(r.weights[0][i], 3), number(r.weights[-1][i], 3),
             number(r.entropy[-1], 3), number(r.temperature[-1], 3))
            for label, seeds in logs.items()
            for seed, r in seeds.items()
            for i, name in enumerate(r.teachers)
        ],
    )  # fmt: skip


def _names(seeds: RoutingBySeed) -> list[str]:
    return list(dict.fromkeys(name for logged in seeds.values() for name in logged.teachers))


def _weight_lines(seeds: RoutingBySeed) -> Lines:
    lines: dict[str, dict[str, Points]] = {name: {} for name in _names(seeds)}
    for seed, logged in seeds.items():
        for name, weights in zip(logged.teachers, zip(*logged.weights, strict=True), strict=True):
            lines[name][seed_name(seed)] = thinned(list(zip(logged.steps, weights, strict=True)))
    return lines


def _entropy(logged: Routing) -> Sequence[tuple[float, float]]:
    most = log(max(2, len(logged.teachers)))
    points = zip(logged.steps, logged.entropy, strict=True)
    return thinned([(step, entropy / most) for step, entropy in points if entropy is not None])


def _by_layer(label: str, seeds: RoutingBySeed, looks: Looks) -> Iterator[Plot]:
    """A panel per teacher, layers over updates; nothing where layers share their weights."""
    logs = [logged for logged in seeds.values() if logged.by_layer]
    steps: Sequence[int] = ()
    means: dict[str, Rows] = {}
    for i, name in enumerate(logs[0].teachers if logs else ()):
        by_seed = (zip(logged.steps, logged.by_layer, strict=True) for logged in logs)
        steps, means[name] = mean_over_seeds([{step: [w[i] for w in layers] for step, layers in s} for s in by_seed])
    if not steps:
        return
    layers = range(len(next(iter(means.values()))))
    panels = Panels(len(means), min(3, len(means)), height=min(2.4, max(0.8, 0.1 * len(layers))))

    def draw(figure: Any) -> None:
        for axes, (name, rows) in zip(panels.axes(figure), means.items(), strict=True):
            shade = colour(looks[name].look)
            panels.draw_over_updates(axes, short(name), steps, rows, layers, 5, SHARE, shade)

    over = f" Means over {counted(len(logs), 'seed')}." if len(logs) > 1 else ""
    yield Plot(
        name=plot_name("routing_layers", label),
        title=f"Weights by student layer over training, {label}",
        caption=f"Full colour is a weight of 1, no colour 0; the first layer is on top.{over}",
        alt=f"A panel of {len(layers)} layers by {len(steps)} updates for each of {listed(list(means))}.",
        size=panels.size,
        draw=draw,
        header=("layer", *(f"{name}, {when}" for name in means for when in ("first", "last"))),
        rows=[(i, *(number(rows[i][k], 3) for rows in means.values() for k in (0, -1))) for i in layers],
    )


def by_question(logs: Mapping[str, SamplesBySeed], looks: Looks) -> Iterator[Block]:
    """Figures of the weights by question; a sentence for members whose weights are the same for all."""
    varying = {label: seeds for label, seeds in logs.items() if any(samples.vary for samples in seeds.values())}
    same = [label for label in logs if label not in varying]
    if same:
        yield Paragraph(f"The weights of {listed(same)} are the same for every question.")
    if varying:
        yield _samples_plot(varying, looks)
        yield _tasks_plot(varying)


def _samples_plot(logs: Mapping[str, SamplesBySeed], looks: Looks) -> Plot:
    """A column per question that the teachers share, sorted by task and by the first teacher's weight; first seeds only."""
    panels = Panels(len(logs), 1, height=0.9, above=0.46, below=0.3)
    first_seeds = {label: next(iter(seeds.items())) for label, seeds in logs.items()}

    def draw(figure: Any) -> None:
        for axes, (label, (seed, samples)) in zip(panels.axes(figure), first_seeds.items(), strict=True):
            _draw_samples(axes, samples, looks)
            of_seed = "" if seed is None else f", seed {seed}"
            axes.set_title(f"{short(label)}{of_seed}, update {samples.step:,}", x=0, pad=14)

    first = next(iter(first_seeds.values()))[1]
    return Plot(
        name="routing_samples",
        title="Weights of the teachers for every validation question",
        caption="A column is a question: its height is shared out among the teachers. Questions stand by task, then by the "
        "weight of the first teacher.",
        alt=f"{counted(len(first.samples), 'column')} of {listed(list(first.teachers))}; the weights are in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "seed", "question", "task", "weights"),
        rows=[
            (label, seed_name(seed), sample.name, sample.task, _beside_names(samples, sample.weights, "{:.3f}".format))
            for label, (seed, samples) in first_seeds.items()
            for sample in samples.samples
        ],
    )


def _beside_names(samples: RoutingSamples, weights: Sequence[float], form: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {form(weight)}" for name, weight in zip(samples.teachers, weights, strict=True))


def _draw_samples(axes: Any, samples: RoutingSamples, looks: Looks) -> None:
    from matplotlib.patches import Patch

    by_task = [sorted(samples.of_task(task), key=lambda sample: -sample.weights[0]) for task in samples.tasks]
    starts = list(accumulate(map(len, by_task), initial=0))
    levels = [list(accumulate(sample.weights, initial=0.0)) for of_task in by_task for sample in of_task]
    for i, name in enumerate(samples.teachers):
        boxes = [(place, ends[i], place + 1, ends[i + 1]) for place, ends in enumerate(levels)]
        add_rectangles(axes, boxes, colour(looks[name].look), name)
    axes.set_xlim(0, starts[-1])
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    for task, (start, end) in zip(samples.tasks, pairwise(starts), strict=True):
        axes.axvline(start, color=PAPER, linewidth=1.6, zorder=3) if start else None
        axes.text((start + end) / 2, -0.06, short(task), ha="center", va="top", color=MUTED, size=6.4, clip_on=False)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    handles = [Patch(facecolor=colour(looks[name].look), label=short(name)) for name in samples.teachers]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(handles), handlelength=1,
                handleheight=0.8, columnspacing=1.2)  # fmt: skip


def _tasks_plot(logs: Mapping[str, SamplesBySeed]) -> Plot:
    """Task by teacher, the mean weight in every cell."""
    tables = {label: _task_means(list(seeds.values())) for label, seeds in logs.items()}
    most = max(len(means) for means in tables.values())
    panels = Panels(len(tables), 2, height=0.05 + 0.22 * most, left=1.1, below=0.25)

    def draw(figure: Any) -> None:
        for axes, (label, means), seeds in zip(panels.axes(figure), tables.items(), logs.values(), strict=True):
            heat(axes, [*means.values(), *[[]] * (most - len(means))], SOFT)
            for y, weights in enumerate(means.values()):
                for x, weight in enumerate(weights):
                    style = {"ha": "center", "va": "center", "color": INK, "size": 6.8, "zorder": 3}
                    axes.text(x + 0.5, y + 0.5, f"{weight:.2f}", **style)
            names = next(iter(seeds.values())).teachers
            axes.set_xlim(0, len(names))
            name_ticks(axes.xaxis, list(map(short, names)))
            name_ticks(axes.yaxis, list(map(short, means)))
            axes.set_title(short(label), x=0, pad=4)

    def in_percent(weight: float) -> str:
        return f"{percent(weight)} %"

    seeds_words = " and seeds" if max(map(len, logs.values())) > 1 else ""
    return Plot(
        name="routing_tasks",
        title="Mean weight of every teacher by kind of question",
        caption=f"Means over the validation questions of a kind{seeds_words}, at the last validation.",
        alt="A cell for each kind of question and teacher; every weight is in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "seed", "task", "questions", "mean weights"),
        rows=[
            (
                label,
                seed_name(seed),
                task,
                len(samples.of_task(task)),
                _beside_names(samples, weights, lambda w: f"{percent(w)} %"),
            )
            for label, seeds in logs.items()
            for seed, samples in seeds.items()
            for task, weights in _task_means([samples]).items()
        ],
    )


def _task_means(seeds: Sequence[RoutingSamples]) -> dict[str, list[float]]:
    """Means over the questions of a seed, then over the seeds that have the task."""
    by_task: dict[str, list[list[float]]] = {}
    for samples in seeds:
        for task in samples.tasks:
            columns = zip(*(sample.weights for sample in samples.of_task(task)), strict=True)
            by_task.setdefault(task, []).append([fmean(column) for column in columns])
    return {task: [fmean(column) for column in zip(*means, strict=True)] for task, means in by_task.items()}
