"""The same weights with another M, T or cue at test time than they were trained with."""

from __future__ import annotations

from typing import Any

from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, panels, result_of, split_part, value
from kava.lab.page.charts import Grid, Lines, curves, share_scale
from kava.lab.page.figures import Plot
from kava.lab.page.markup import NONE, Html, Row, join, percent, seed_name, table, tag
from kava.lab.page.sections.accuracy import plot_name

TITLES = {"M": "number of latents, M", "T": "number of rounds, T"}
KEYS = {"M": "latent.num_tokens", "T": "latent.num_iterations"}
HEADER = ("member", "seed", "changed at test time", "accuracy, %", "as trained, %")


def changed_thinking(study: Study, label: str) -> list[Html | Plot]:
    """Curves over M and over T, or a table where only something else was changed; [] where nothing was."""
    rows = [row for member in study.members for row in _rows(member, label)]
    if not rows:
        return []
    lines: dict[str, Lines] = {letter: _lines(study, label, letter) for letter in TITLES}
    there = [letter for letter in TITLES if lines[letter]]
    members = [member for member in study.members if any(member.label in lines[letter] for letter in there)]
    title = f"Accuracy on {label} with another M, T or cue at test time"
    if not members:
        return [join([tag("h3", title), table(HEADER, rows, title)])]
    grid = Grid([f"accuracy, %, by {TITLES[letter]}" for letter in there], panels(members), height=1.6)

    def draw(figure: Any) -> None:
        for letter, row in zip(there, grid.axes(figure), strict=True):
            for one, group in row:
                curves(one, group, lines[letter], marks=20)
                one.set_xticks(sorted({x for seeds in lines[letter].values() for p in seeds.values() for x, _ in p}))
            share_scale([one for one, _ in row])

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


def _results(member: StudyMember, label: str) -> Any:
    """(run, plain result, changes, changed result) of what a member was asked to do otherwise."""
    for run in (run for run in member.runs if run.status in COUNTED):
        plain = result_of(run, label, member.mode)
        for result in run.results:
            changes = split_part(result.part)[1]
            if changes and result.ablate is None and label_of(result) == label and result.mode == member.mode:
                yield run, plain, changes, result


def _rows(member: StudyMember, label: str) -> list[Row]:
    rows: list[Row] = []
    for run, plain, changes, result in _results(member, label):
        what = ", ".join(f"{name} = {new}" if name in TITLES else f"{name} {new}" for name, new in changes.items())
        own = NONE if plain is None else percent(plain.accuracy)
        rows.append((member.label, seed_name(run.seed), what, percent(result.accuracy), own))
    return rows


def _lines(study: Study, label: str, letter: str) -> Lines:
    """Accuracy over the values of M (or T) alone, the trained one included."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for member in study.members:
        for run, plain, changes, result in _results(member, label):
            if set(changes) != {letter}:
                continue
            points = found.setdefault(member.label, {}).setdefault(seed_name(run.seed), [])
            trained = value(run.recipe, KEYS[letter])
            if not points and plain is not None and trained is not None:
                points.append((float(trained), 100 * plain.accuracy))
            points.append((float(changes[letter]), 100 * result.accuracy))
            points.sort()
    return found
