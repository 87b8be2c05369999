"""The weight of each teacher by question: every validation question alone, and the means of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import RoutingSamples
from kava.lab.page.blocks import Block, Paragraph, Plot, Row
from kava.lab.page.charts import short
from kava.lab.page.figures import INK, MUTED, PAPER, colour, tip
from kava.lab.page.formats import counted, listed, percent, seed_name
from kava.lab.page.heat import Box, Panels, Scale, heat, rectangles
from kava.lab.page.sections.routing import Looks

SOFT = Scale(0.0, 1.6, empty=True)  # of shares with words on them
SamplesBySeed = Mapping[int | None, RoutingSamples]


def by_question(logs: Mapping[str, SamplesBySeed], looks: Looks) -> list[Block]:
    varying = {label: seeds for label, seeds in logs.items() if any(samples.vary for samples in seeds.values())}
    same = [label for label in logs if label not in varying]
    parts: list[Block] = []
    if same:
        parts.append(Paragraph(f"The weights of {listed(same)} are the same for every question."))
    if varying:
        parts += [_samples_plot(varying, looks), _tasks_plot(varying)]
    return parts


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
    rows: list[Row] = []
    for label, (seed, samples) in first_seeds.items():
        for sample in samples.samples:
            words = ", ".join(f"{name} {w:.3f}" for name, w in zip(samples.teachers, sample.weights, strict=True))
            rows.append((label, seed_name(seed), sample.name, sample.task, words))
    return Plot(
        name="routing_samples",
        title="Weights of the teachers for every validation question",
        caption="A column is a question: its height is shared out among the teachers. Questions stand by task, then by the "
        "weight of the first teacher.",
        alt=f"{counted(len(first.samples), 'column')} of {listed(list(first.teachers))}; the weights are in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "seed", "question", "task", "weights"),
        rows=rows,
    )


def _draw_samples(axes: Any, samples: RoutingSamples, looks: Looks) -> None:
    from matplotlib.patches import Patch

    boxes: dict[str, list[Box]] = {name: [] for name in samples.teachers}
    starts = [0]
    for task in samples.tasks:
        for place, sample in enumerate(sorted(samples.of_task(task), key=lambda s: -s.weights[0]), starts[-1]):
            level = 0.0
            for name, weight in zip(samples.teachers, sample.weights, strict=True):
                boxes[name].append((place, level, place + 1, level + weight))
                level += weight
        starts.append(len(boxes[samples.teachers[0]]))
    for name, of_teacher in boxes.items():
        patch = rectangles(of_teacher, colour(looks[name].look), sharp=True)
        axes.add_patch(patch)
        tip(patch, name)
    axes.set_xlim(0, starts[-1])
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    for task, start, end in zip(samples.tasks, starts, starts[1:], strict=False):
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
                    axes.text(
                        x + 0.5, y + 0.5, f"{weight:.2f}", ha="center", va="center", color=INK, size=6.8, zorder=3
                    )
            names = next(iter(seeds.values())).teachers
            axes.set_xlim(0, len(names))
            axes.set_xticks([i + 0.5 for i in range(len(names))], [short(name) for name in names])
            axes.set_yticks([i + 0.5 for i in range(len(means))], [short(task) for task in means])
            axes.set_title(short(label), x=0, pad=4)

    rows: list[Row] = []
    for label, seeds in logs.items():
        for seed, samples in seeds.items():
            for task, weights in _task_means([samples]).items():
                words = ", ".join(f"{name} {percent(w)} %" for name, w in zip(samples.teachers, weights, strict=True))
                rows.append((label, seed_name(seed), task, len(samples.of_task(task)), words))
    seeds_words = " and seeds" if max(map(len, logs.values())) > 1 else ""
    return Plot(
        name="routing_tasks",
        title="Mean weight of every teacher by kind of question",
        caption=f"Means over the validation questions of a kind{seeds_words}, at the last validation.",
        alt="A cell for each kind of question and teacher; every weight is in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "seed", "task", "questions", "mean weights"),
        rows=rows,
    )


def _task_means(seeds: Sequence[RoutingSamples]) -> dict[str, list[float]]:
    """Means over the questions of a seed, then over the seeds that have the task."""
    by_task: dict[str, list[list[float]]] = {}
    for samples in seeds:
        for task in samples.tasks:
            columns = zip(*(sample.weights for sample in samples.of_task(task)), strict=True)
            by_task.setdefault(task, []).append([fmean(column) for column in columns])
    return {task: [fmean(column) for column in zip(*means, strict=True)] for task, means in by_task.items()}
