"""The same weights with another M, T or cue at test time than they were trained with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kava.lab.analysis.runs import Run, RunResult
from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, panels, result_of, split_part, value
from kava.lab.page.blocks import Block, Plot, Row, Subheading, Table
from kava.lab.page.charts import Grid, Lines, curves, share_scale
from kava.lab.page.formats import DASH, percent, plot_name, seed_name

TITLES = {"M": "number of latents, M", "T": "number of rounds, T"}
KEYS = {"M": "latent.num_tokens", "T": "latent.num_iterations"}
HEADER = ("member", "seed", "changed at test time", "accuracy, %", "as trained, %")


def changed_thinking(study: Study, label: str) -> list[Block]:
    """Curves over M and over T, or a table where only something else was changed; [] where nothing was."""
    rows = [row for member in study.members for row in _rows(member, label)]
    if not rows:
        return []
    every = {letter: _lines(study, label, letter) for letter in TITLES}
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


def changed_results(member: StudyMember, label: str) -> Iterator[tuple[Run, RunResult | None, RunResult]]:
    """(run, result as trained, result with latents, M, T or cue changed at test time)"""
    for run in (run for run in member.runs if run.status in COUNTED):
        as_trained = result_of(run, label, member.mode)
        for result in run.results:
            changed = result.ablate is not None or split_part(result.part)[1]
            if changed and label_of(result) == label and result.mode == member.mode:
                yield run, as_trained, result


def _rows(member: StudyMember, label: str) -> list[Row]:
    rows: list[Row] = []
    for run, plain, result in changed_results(member, label):
        changes = split_part(result.part)[1]
        if result.ablate is not None:
            continue
        what = ", ".join(f"{name} = {new}" if name in TITLES else f"{name} {new}" for name, new in changes.items())
        as_trained = DASH if plain is None else percent(plain.accuracy)
        rows.append((member.label, seed_name(run.seed), what, percent(result.accuracy), as_trained))
    return rows


def _lines(study: Study, label: str, letter: str) -> Lines:
    """Accuracy over the values of M (or T) alone, the trained one included."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for member in study.members:
        for run, plain, result in changed_results(member, label):
            changes = split_part(result.part)[1]
            if set(changes) != {letter} or result.ablate is not None:
                continue
            points = lines.setdefault(member.label, {}).setdefault(seed_name(run.seed), [])
            trained = value(run.recipe, KEYS[letter])
            if not points and plain is not None and trained is not None:
                points.append((float(trained), 100 * plain.accuracy))
            points.append((float(changes[letter]), 100 * result.accuracy))
            points.sort()
    return lines
