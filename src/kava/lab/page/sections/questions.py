"""How much each teacher counts for a question: every validation question alone, and the means of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import LogsByMember, RoutingSamples
from kava.lab.analysis.study import StudyMember
from kava.lab.page.charts import short
from kava.lab.page.figures import INK, MUTED, PAPER, Plot, colour, tip
from kava.lab.page.heat import Box, Panels, Scale, heat, rectangles
from kava.lab.page.markup import Html, Row, counted, listed, paragraph, percent, seed_name

SOFT = Scale(0.0, 1.6, empty=True)  # of shares with words on them


def by_question(found: LogsByMember, looks: Mapping[str, StudyMember]) -> list[Plot | Html]:
    every = {
        label: {seed: one.samples for seed, one in seeds.items() if one.samples is not None}
        for label, seeds in found.items()
    }
    vary = {label: seeds for label, seeds in every.items() if any(one.vary for one in seeds.values())}
    same = [label for label, seeds in every.items() if seeds and label not in vary]
    parts: list[Plot | Html] = []
    if same:
        parts.append(paragraph(f"The weights of {listed(same)} are the same for every question."))
    if vary:
        parts += [_samples_plot({label: next(iter(seeds.items())) for label, seeds in vary.items()}, looks)]
        parts += [_tasks_plot(vary)]
    return parts


def _samples_plot(shown: Mapping[str, tuple[int | None, RoutingSamples]], looks: Mapping[str, StudyMember]) -> Plot:
    """Every question is a column that the teachers share, sorted by task and by the first teacher's weight."""
    panels = Panels(len(shown), 1, height=0.9, above=0.46, below=0.3)

    def draw(figure: Any) -> None:
        for one, (label, (seed, samples)) in zip(panels.axes(figure), shown.items(), strict=True):
            _draw_samples(one, samples, looks)
            of_seed = "" if seed is None else f", seed {seed}"
            one.set_title(f"{short(label)}{of_seed}, update {samples.step:,}", x=0, pad=14)

    first = next(iter(shown.values()))[1]
    rows: list[Row] = []
    for label, (seed, samples) in shown.items():
        for one in samples.samples:
            words = ", ".join(f"{name} {w:.3f}" for name, w in zip(samples.teachers, one.weights, strict=True))
            rows.append((label, seed_name(seed), one.name, one.task, words))
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


def _draw_samples(one: Any, samples: RoutingSamples, looks: Mapping[str, StudyMember]) -> None:
    boxes: dict[str, list[Box]] = {name: [] for name in samples.teachers}
    starts = [0]
    for task in samples.tasks:
        for sample in sorted(samples.of_task(task), key=lambda s: -s.weights[0]):
            level, place = 0.0, sum(map(len, boxes.values())) // len(boxes)
            for name, weight in zip(samples.teachers, sample.weights, strict=True):
                boxes[name].append((place, level, place + 1, level + weight))
                level += weight
        starts.append(len(boxes[samples.teachers[0]]))
    for name, found in boxes.items():
        patch = rectangles(found, colour(looks[name].look), sharp=True)
        one.add_patch(patch)
        tip(patch, name)
    one.set_xlim(0, starts[-1])
    one.set_ylim(0, 1)
    one.grid(visible=False)
    for task, start, end in zip(samples.tasks, starts, starts[1:], strict=False):
        one.axvline(start, color=PAPER, linewidth=1.6, zorder=3) if start else None
        one.text((start + end) / 2, -0.06, short(task), ha="center", va="top", color=MUTED, size=6.4, clip_on=False)
    one.set_xticks([])
    one.spines[["bottom", "left"]].set_visible(False)
    _key(one, samples.teachers, looks)


def _key(one: Any, names: Sequence[str], looks: Mapping[str, StudyMember]) -> None:
    """The teachers' colours above the panel."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour(looks[name].look), label=short(name)) for name in names]
    one.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(names), handlelength=1, handleheight=0.8,
               columnspacing=1.2)  # fmt: skip


def _tasks_plot(vary: Mapping[str, Mapping[int | None, RoutingSamples]]) -> Plot:
    """Task by teacher, the mean weight in every cell."""
    tables = {label: _task_means(list(seeds.values())) for label, seeds in vary.items()}
    most = max(len(means) for means in tables.values())
    panels = Panels(len(tables), 2, height=0.05 + 0.22 * most, left=1.1, below=0.25)

    def draw(figure: Any) -> None:
        for one, (label, means), seeds in zip(panels.axes(figure), tables.items(), vary.values(), strict=True):
            heat(one, [*means.values(), *[[]] * (most - len(means))], SOFT)
            for y, weights in enumerate(means.values()):
                for x, weight in enumerate(weights):
                    one.text(x + 0.5, y + 0.5, f"{weight:.2f}", ha="center", va="center", color=INK, size=6.8, zorder=3)
            names = next(iter(seeds.values())).teachers
            one.set_xlim(0, len(names))
            one.set_xticks([i + 0.5 for i in range(len(names))], [short(name) for name in names])
            one.set_yticks([i + 0.5 for i in range(len(means))], [short(task) for task in means])
            one.set_title(short(label), x=0, pad=4)

    rows: list[Row] = []
    for label, seeds in vary.items():
        for seed, samples in seeds.items():
            for task, weights in _task_means([samples]).items():
                words = ", ".join(f"{name} {percent(w)} %" for name, w in zip(samples.teachers, weights, strict=True))
                rows.append((label, seed_name(seed), task, len(samples.of_task(task)), words))
    seeds_words = " and seeds" if max(map(len, vary.values())) > 1 else ""
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
    tasks = dict.fromkeys(task for one in seeds for task in one.tasks)
    found = {}
    for task in tasks:
        by_seed = [
            [fmean(column) for column in zip(*(s.weights for s in one.of_task(task)), strict=True)]
            for one in seeds
            if task in one.tasks
        ]
        found[task] = [fmean(column) for column in zip(*by_seed, strict=True)]
    return found
