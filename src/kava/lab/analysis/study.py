"""What a report compares: members in order and in groups, their seeds, the sets they answered. `lineup.py` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from kava.lab.analysis.runs import Run, RunResult
from kava.lab.analysis.stats import compare_values, spread, wilson

# In this order: what has no KV term is what the rest is held against.
GROUPS = {
    "none": "Without KV term",
    "kv": "KV term",
    "spoiled": "KV term, shuffled targets",
    "unknown": "No recipe beside the results",
    "other": "Asked in another mode",
}
PER_GROUP = 7  # as many colours as can be told apart
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "8", "d", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
_CHANGE = re.compile(r"([MT])(\d+)|(cue)_(\w+)")
COUNTED = ("finished", "evaluated")  # a run that was cut short had fewer updates than the others


@dataclass(frozen=True)
class Look:
    """How a member is drawn, the same in every figure: index of its colour, marker, dashes."""

    colour: int
    marker: str
    dash: Any


@dataclass(frozen=True)
class StudyMember:
    """The runs of one name in one mode of answering; `label` is what the page calls it."""

    label: str
    title: str
    mode: str
    group: str
    runs: tuple[Run, ...]
    look: Look = Look(0, "o", "-")


@dataclass(frozen=True)
class Group:
    """Members that share a panel."""

    title: str
    members: tuple[StudyMember, ...]


@dataclass(frozen=True)
class Score:
    """One member on one set: a result per seed that has one."""

    results: tuple[tuple[Run, RunResult], ...]

    @property
    def values(self) -> list[float]:
        return [result.accuracy for _, result in self.results]

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.results else None

    @property
    def sd(self) -> float | None:
        return spread(self.values)

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """Low, high and kind: t over three seeds or more, Wilson over the items of a single run, none for two seeds."""
        if len(self.results) == 1:
            result = self.results[0][1]
            return None if result.correct is None else (*wilson(result.correct, result.total), "Wilson")
        found = compare_values(dict(enumerate(self.values)), dict.fromkeys(range(len(self.values)), 0.0))
        if found.low is None or found.high is None:
            return None
        return max(0.0, found.low), min(1.0, found.high), "t"

    def average(self, field: str) -> float | None:
        """Mean over seeds of a number of the results files; None where any seed lacks it."""
        found = [result.fields.get(field) for _, result in self.results]
        numbers = [float(value) for value in found if isinstance(value, int | float)]
        return fmean(numbers) if numbers and len(numbers) == len(found) else None

    @property
    def passes(self) -> float | None:
        found = [result.passes_mean for _, result in self.results if result.passes_mean is not None]
        return fmean(found) if found and len(found) == len(self.results) else None


@dataclass(frozen=True)
class Study:
    """Everything a page is made of. `sets` are the ones shown, `left_out` other sets that have results."""

    members: tuple[StudyMember, ...]
    sets: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    suites: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)  # folder -> its suite.json
    broken: Mapping[Path, str] = field(default_factory=dict)  # run's folder -> the last line of its output
    roots: tuple[Path, ...] = ()

    @cached_property
    def runs(self) -> list[Run]:
        return [run for member in self.members for run in member.runs]

    @cached_property
    def explicit(self) -> bool:
        """All students write their steps: there are no latents to look at."""
        recipes = [run.recipe for run in self.runs if run.recipe]
        return bool(recipes) and all(value(recipe, "explicit.enabled") for recipe in recipes)

    @cached_property
    def logs(self) -> dict[str, dict[int | None, list[dict[str, Any]]]]:
        """StudyMember's label -> seed -> lines of the log."""
        return {member.label: {run.seed: run.log() for run in member.runs} for member in self.members}

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that the suite asked for, and every seed that any member has."""
        planned = {int(seed) for suite in self.suites.values() for seed in suite.get("seeds", ())}
        return sorted(planned | {run.seed for run in self.runs if run.seed is not None})

    @cached_property
    def entries(self) -> tuple[StudyMember, ...]:
        """The members, then the same checkpoints in modes that are not their own, where they were evaluated so."""
        found = list(self.members)
        for member in self.members:
            modes = {r.mode for run in member.runs for r in plain(run) if label_of(r) in self.sets}
            for mode in sorted(modes - {member.mode}):
                found.append(replace(member, label=f"{member.label} ({mode})", mode=mode, group="other"))
        return tuple(with_looks(found))

    def score(self, member: StudyMember, label: str) -> Score:
        found = ((run, result_of(run, label, member.mode)) for run in member.runs if run.status in COUNTED)
        return Score(tuple((run, result) for run, result in found if result is not None))

    def missing(self, member: StudyMember) -> list[int]:
        """Seeds that the study has and this member has no run of."""
        if member.runs and all(run.seed is None for run in member.runs):
            return []
        return [seed for seed in self.seeds if seed not in {run.seed for run in member.runs}]


def split_part(part: str) -> tuple[str, dict[str, str]]:
    """A file name's part as (which items, what was changed at test time): ".limit16.M12" gives ".limit16", {"M": "12"}."""
    items, changes = "", {}
    for word in filter(None, part.split(".")):
        match = _CHANGE.fullmatch(word)
        if match:
            changes[match[1] or match[3]] = match[2] or match[4]
        else:
            items += f".{word}"
    return items, changes


def label_of(result: RunResult) -> str:
    """The items a result is about: the set, and the part of it that was asked."""
    return result.set + split_part(result.part)[0]


def plain(run: Run) -> list[RunResult]:
    """Results of the checkpoint as it is: latents intact, M and T as trained."""
    return [r for r in run.results if r.ablate is None and not split_part(r.part)[1]]


def result_of(run: Run, label: str, mode: str) -> RunResult | None:
    return next((r for r in plain(run) if label_of(r) == label and r.mode == mode), None)


def value(recipe: Mapping[str, Any], key: str) -> Any:
    """`section.key` of a recipe; None where it is not set."""
    section, _, name = key.partition(".")
    return (recipe.get(section) or {}).get(name)


def panels(members: Sequence[StudyMember]) -> list[Group]:
    """`members` by group, at most seven together; few of them stay in one panel without a title."""
    if len(members) <= PER_GROUP:
        return [Group("", tuple(members))]
    found = []
    for name, title in GROUPS.items():
        inside = [member for member in members if member.group == name]
        parts = -(-len(inside) // PER_GROUP)
        size = -(-len(inside) // parts) if parts else 0
        for i in range(parts):
            label = f"{title}, {i + 1} of {parts}" if parts > 1 else title
            found.append(Group(label, tuple(inside[i * size : (i + 1) * size])))
    return found


def with_looks(members: Sequence[StudyMember]) -> list[StudyMember]:
    """Within a panel every member has a colour and a marker of its own; markers differ everywhere up to fourteen."""
    places = {member.label: i for group in panels(members) for i, member in enumerate(group.members)}
    found = []
    for i, member in enumerate(members):
        place = places[member.label]
        found.append(replace(member, look=Look(place, MARKERS[i % len(MARKERS)], DASHES[place % len(DASHES)])))
    return found
