"""The record that page, claims and tables share: members with their runs, seeds and results. `load_study` reads it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kava.lab.analysis.runs import Run, RunResult

# In this order: members without a KV term are what the others are compared with.
GROUPS = {
    "none": "Without KV term",
    "kv": "KV term",
    "spoiled": "KV term, shuffled targets",
    "unknown": "No recipe beside the results",
    "other": "Asked in another mode",
}
PER_GROUP = 7  # the number of colours that can be told apart
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "8", "d", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
_CHANGE = re.compile(r"(M|T|samples|temp|topp|seed)(\d[\de-]*)|(cue)_(\w+)")
COUNTED = ("finished", "evaluated")  # an interrupted run had fewer updates than the others


@dataclass(frozen=True)
class Look:
    """A member's colour index, marker and dashes, the same in every figure."""

    colour: int
    marker: str
    dash: Any


@dataclass(frozen=True)
class StudyMember:
    """The runs of one recipe, over seeds, in one mode of answering; `label` is its unique name in tables and figures."""

    label: str
    title: str
    mode: str
    group: str
    runs: tuple[Run, ...]
    look: Look = Look(0, "o", "-")


@dataclass(frozen=True)
class Group:
    """Members that share a panel of a figure."""

    title: str
    members: tuple[StudyMember, ...]


@dataclass(frozen=True)
class Score:
    """A member's results on one set, one for each seed that has them."""

    results: tuple[tuple[Run, RunResult], ...]

    @property
    def values(self) -> list[float]:
        return [result.accuracy for _, result in self.results]

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.results else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return stdev(self.values) if len(self.results) > 1 else None

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """95 % interval (low, high, kind): t over three seeds or more, Wilson over items for a single run, None for two seeds."""
        from kava.lab.analysis.stats import compare_values, wilson  # late: needs numpy

        if len(self.results) == 1:
            result = self.results[0][1]
            return None if result.correct is None else (*wilson(result.correct, result.total), "Wilson")
        against_zero = compare_values(dict(enumerate(self.values)), dict.fromkeys(range(len(self.values)), 0.0))
        if against_zero.low is None or against_zero.high is None:
            return None
        return max(0.0, against_zero.low), min(1.0, against_zero.high), "t"

    def average(self, field: str) -> float | None:
        """Mean over seeds of a number in the results files; None if any seed lacks it."""
        values = [result.fields.get(field) for _, result in self.results]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return fmean(numbers) if numbers and len(numbers) == len(values) else None

    @property
    def passes(self) -> float | None:
        """Mean forward passes; None if any seed lacks them."""
        means = [result.passes_mean for _, result in self.results if result.passes_mean is not None]
        return fmean(means) if means and len(means) == len(self.results) else None


@dataclass(frozen=True)
class Study:
    """Members with their runs, and what their suites planned. `sets` are reported, `left_out` other sets with results."""

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
        """True if every student writes its steps as text, so that there are no latents to examine."""
        trained = [run for run in self.runs if run.recipe]
        return bool(trained) and all(run.explicit for run in trained)

    @cached_property
    def logs(self) -> dict[str, dict[int | None, list[dict[str, Any]]]]:
        """Member's label -> seed -> lines of log.jsonl."""
        return {member.label: {run.seed: run.log() for run in member.runs} for member in self.members}

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that the suites planned and those that any member has."""
        planned = {int(seed) for suite in self.suites.values() for seed in suite.get("seeds", ())}
        return sorted(planned | {run.seed for run in self.runs if run.seed is not None})

    @cached_property
    def entries(self) -> tuple[StudyMember, ...]:
        """The members, then the same checkpoints in other modes in which they were evaluated."""
        others = []
        for member in self.members:
            modes = {r.mode for run in member.runs for r in plain(run) if label_of(r) in self.sets} - {member.mode}
            others += [replace(member, label=f"{member.label} ({m})", mode=m, group="other") for m in sorted(modes)]
        return tuple(with_looks([*self.members, *others]))

    def score(self, member: StudyMember, label: str) -> Score:
        """The member's results on a set, of runs that were trained to the end."""
        results = ((run, result_of(run, label, member.mode)) for run in member.runs if run.status in COUNTED)
        return Score(tuple((run, result) for run, result in results if result is not None))

    def results(self, member: StudyMember) -> dict[int | None, RunResult]:
        """Seed -> the member's result on the first of the reported sets."""
        return {run.seed: result for label in self.sets[:1] for run, result in self.score(member, label).results}

    def missing(self, member: StudyMember) -> list[int]:
        """Seeds of the study of which this member has no run."""
        if member.runs and all(run.seed is None for run in member.runs):
            return []
        return [seed for seed in self.seeds if seed not in {run.seed for run in member.runs}]


def split_part(part: str) -> tuple[str, dict[str, str]]:
    """Split a results file name's part into items and test-time changes: ".limit16.M12" gives ".limit16", {"M": "12"}."""
    items, changes = "", {}
    for word in filter(None, part.split(".")):
        if match := _CHANGE.fullmatch(word):
            changes[match[1] or match[3]] = match[2] or match[4]
        else:
            items += f".{word}"
    return items, changes


def label_of(result: RunResult) -> str:
    """The name of the items a result is about: the set, and the part of it that was evaluated."""
    return result.set + split_part(result.part)[0]


def plain(run: Run) -> list[RunResult]:
    """Results of the unchanged checkpoint: latents intact, M, T, cue and sampling as trained."""
    return [r for r in run.results if r.ablate is None and not split_part(r.part)[1]]


def whole_first(results: Sequence[RunResult]) -> list[RunResult]:
    """The results on whole sets; those on parts of sets (a rehearsal's) only where there are no others."""
    return [r for r in results if label_of(r) == r.set] or list(results)


def result_of(run: Run, label: str, mode: str) -> RunResult | None:
    """The unchanged checkpoint's result on these items in this mode."""
    return next((r for r in plain(run) if label_of(r) == label and r.mode == mode), None)


def value(recipe: Mapping[str, Any], key: str) -> Any:
    """The setting `section.key` of a recipe; None if it is not set."""
    section, _, name = key.partition(".")
    return (recipe.get(section) or {}).get(name)


def panels(members: Sequence[StudyMember]) -> list[Group]:
    """Members divided into panels by group, at most seven each; up to seven members share one untitled panel."""
    if len(members) <= PER_GROUP:
        return [Group("", tuple(members))]
    groups = []
    for name, title in GROUPS.items():
        inside = tuple(member for member in members if member.group == name)
        parts = ceil(len(inside) / PER_GROUP)
        for i in range(parts):
            size = ceil(len(inside) / parts)
            label = f"{title}, {i + 1} of {parts}" if parts > 1 else title
            groups.append(Group(label, inside[i * size : (i + 1) * size]))
    return groups


def with_looks(members: Sequence[StudyMember]) -> list[StudyMember]:
    """Members with a colour and a marker that are unique within a panel; up to fourteen markers are unique everywhere."""
    colours = {member.label: i for group in panels(members) for i, member in enumerate(group.members)}
    return [
        replace(member, look=Look(colour, MARKERS[i % len(MARKERS)], DASHES[colour % len(DASHES)]))
        for i, member in enumerate(members)
        for colour in [colours[member.label]]
    ]
