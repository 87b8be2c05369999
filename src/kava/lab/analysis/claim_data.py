"""The runs of one analysis: which there are, which are missing and why, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kava.config.text import parse_text
from kava.errors import ConfigError, DataError, RunError
from kava.lab.analysis.aggregate import SAME
from kava.lab.analysis.claims import CLAIMS, E1, E2, E3, E4, E5, SINGLE, TEACHERS
from kava.lab.analysis.runs import SUITE, Run, RunResult, find_runs, learnt, same_items, writes_its_steps
from kava.registry import nearest

EXPLICIT = "full_cot"  # writes its chain of thought
KNOWN = tuple(
    dict.fromkeys(
        ["E0_ce_only", E1, E2, E3, E4, E5, *(name for claim in CLAIMS for name in claim.members), EXPLICIT, *TEACHERS]
    )
)
COUNTED = ("finished", "evaluated")  # a run that was cut short had fewer updates than the others
ONE_CONFIG = "compare runs of one recipe with equal data and updates; --experiments names them"


@dataclass
class Member:
    """An experiment's runs by seed. `absent` says of every seed that does not count why."""

    name: str
    title: str = ""
    mode: str = "latent"
    runs: dict[int | None, Run] = field(default_factory=dict)
    logs: dict[int | None, list[dict[str, Any]]] = field(default_factory=dict)
    results: dict[int | None, RunResult] = field(default_factory=dict)
    absent: dict[int, str] = field(default_factory=dict)


@dataclass
class Gathered:
    """`correct` is member -> seed -> right or wrong per item, in one order of items for all."""

    base: Path
    set: str | None
    members: list[Member]
    seeds: list[int]
    left_out: list[str]
    correct: dict[str, dict[int, NDArray[np.bool_]]]

    def results(self) -> list[RunResult]:
        return [result for member in self.members for result in member.results.values()]

    def runs(self) -> list[Run]:
        return [run for member in self.members for run in member.runs.values()]


@dataclass
class _Plan:
    """What suite.json files announce."""

    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    broken: dict[tuple[str, str], str] = field(default_factory=dict)


def gather(base: Path, experiments: Sequence[str] = (), dataset: str | None = None) -> Gathered:
    """Every run below `base` of the experiments (default: those of suites with claims), checked and paired by seed."""
    found = find_runs([base])
    plan = _plan(base)
    names = _names(found, plan, experiments)
    members = [_member(name, found, plan) for name in names]
    counted = [run for member in members for run in member.runs.values()]
    _same(counted, BUDGET, "unequal budget")
    for member in members:
        _same(member.runs.values(), {"settings": _settings}, f"different settings in {member.name}")
    set_name = _set(members, plan, dataset)
    seeds = sorted(
        {seed for member in members for seed in (*member.runs, *member.absent) if seed is not None}
        | {seed for name in names for seed in plan.seeds.get(name, [])}
    )
    for member in members:
        _fill(member, seeds, set_name)
    left_out = sorted({run.member for run in found} - set(names))
    gathered = Gathered(base, set_name, members, seeds, left_out, {})
    _comparable(gathered.results())
    _judgements(gathered)
    return gathered


def _plan(base: Path) -> _Plan:
    plan = _Plan()
    for path in sorted([*base.glob(SUITE), *base.glob(f"*/{SUITE}")]):
        suite = parse_text(path.read_text(encoding="utf-8"), str(path), as_json=True)
        for name, entry in suite.get("members", {}).items():
            plan.members.setdefault(name, entry)
            plan.seeds.setdefault(name, list(suite.get("seeds", [])))
        plan.sets += [name for name in suite.get("sets", []) if name not in plan.sets]
        for label, line in suite.get("broken", {}).items():
            name, _, seed = label.partition("/")
            plan.broken[name, seed] = str(line)
    return plan


def _names(found: Sequence[Run], plan: _Plan, experiments: Sequence[str]) -> list[str]:
    there = list(dict.fromkeys([*plan.members, *(run.member for run in found)]))
    wanted = list(dict.fromkeys(Path(name).name for name in experiments))
    for name in wanted:
        if name not in there and _known(name) not in KNOWN:
            raise ConfigError(f"no experiment {name!r} below the folder", nearest(name, there))
    if wanted:
        return wanted
    names = sorted((name for name in there if _known(name) in KNOWN), key=lambda name: KNOWN.index(_known(name)))
    if not names:
        raise RunError(
            f"no experiment of a suite with claims (e1-e5, phases, stages), only {', '.join(there[:8])}",
            "name what to compare with --experiments",
        )
    return names


def _known(name: str) -> str:
    """The name that `KNOWN` has for it: there may be any number of teachers alone."""
    return SINGLE if name.startswith(SINGLE) else name


def _member(name: str, found: Sequence[Run], plan: _Plan) -> Member:
    entry = plan.members.get(name, {})
    writes = name == EXPLICIT or any(writes_its_steps(run.recipe) for run in found if run.member == name)
    mode = entry.get("mode") or ("cot" if writes else "latent")
    member = Member(name, entry.get("title", ""), mode)
    places: dict[int | None, Path] = {}
    for run in found:
        if run.member != name:
            continue
        seed = (
            run.seed
            if run.seed is not None
            else next((r.fields["seed"] for r in run.results if "seed" in r.fields), None)
        )
        if seed in places:
            raise DataError(
                f"{name}, seed {seed} is there twice: {places[seed]} and {run.folder}",
                "give --output_base the folder of one of them",
            )
        places[seed] = run.folder
        if run.status in COUNTED:
            member.runs[seed], member.logs[seed] = run, run.log()
        elif seed is not None:
            line = plan.broken.get((name, f"seed_{seed}"))
            member.absent[seed] = f"{run.status}: {line}" if line else run.status
    return member


def _config(run: Run) -> Any:
    named = [result.fields.get("config") for result in run.results]
    return run.recipe.get("about", {}).get("name") or next((name for name in named if name), None)


def _settings(run: Run) -> dict[str, Any] | None:
    """What a recipe trains, without its seed; None for a run of which only results are left. Of data the hash counts."""
    return {key: value for key, value in learnt(run.recipe).items() if not key.startswith("dataset.")} or None


BUDGET: dict[str, Callable[[Run], Any]] = {
    "config": _config,
    "training data (sha256)": lambda run: run.meta.get("data", {}).get("sha256"),
    "updates": lambda run: run.meta.get("steps"),
    "effective batch size": lambda run: run.meta.get("effective_batch_size"),
}


def _same(runs: Iterable[Run], facts: dict[str, Callable[[Run], Any]], what: str) -> None:
    """Refuses runs that are known to differ in one of the facts."""
    for name, fact in facts.items():
        known = [(run, fact(run)) for run in runs if fact(run) is not None]
        for run, value in known[1:]:
            first, expected = known[0]
            if value == expected:
                continue
            one, other = (expected, value)
            if isinstance(value, dict):  # only what differs
                one, other = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((one, other), (other, one)))
            raise DataError(f"{what}: {first.folder} has {name} {one}, {run.folder} has {other}", ONE_CONFIG)


def _set(members: Sequence[Member], plan: _Plan, dataset: str | None) -> str | None:
    """The set to compare: --dataset, or the first one that every experiment with results was asked; None without any."""
    asked = [[{r.set for r in run.results if _plain(r, m)} for run in m.runs.values()] for m in members]
    of_members = [set().union(*sets) for sets in asked if any(sets)]
    every = set().union(*of_members) if of_members else set()
    if dataset is not None:
        if dataset not in every:
            raise ConfigError(f"no results of {dataset!r}", "there are: " + (", ".join(sorted(every)) or "none"))
        return dataset
    common = set.intersection(*of_members) if of_members else set()
    if every and not common:
        raise DataError(
            f"no set that every experiment was asked; there are {', '.join(sorted(every))}", "choose one with --dataset"
        )
    recipes = [
        name
        for m in members
        for run in m.runs.values()
        for name in run.recipe.get("evaluation", {}).get("datasets", [])
    ]
    return next((name for name in [*plan.sets, *recipes, *sorted(common)] if name in common), None)


def _plain(result: RunResult, member: Member) -> bool:
    return (result.mode, result.ablate, result.part) == (member.mode, None, "")


def _fill(member: Member, seeds: Sequence[int], set_name: str | None) -> None:
    """The member's results on the set, and a word for every seed without one."""
    for seed, run in member.runs.items():
        result = run.result(set_name, member.mode) if set_name else None
        if result is not None:
            member.results[seed] = result
        elif seed is not None:
            member.absent[seed] = f"{run.status}, no results" + (f" of {set_name}" if set_name else "")
    for seed in seeds:
        if seed not in member.runs:
            member.absent.setdefault(seed, "no run")
    member.absent = dict(sorted(member.absent.items()))


def _comparable(results: Sequence[RunResult]) -> None:
    """Refuses other items, and another way to ask within a mode."""
    for other in results[1:]:
        same_items(results[0], other)
    for mode in {result.mode for result in results}:
        alike = [result for result in results if result.mode == mode]
        for other in alike[1:]:
            for key in SAME:
                if alike[0].fields.get(key) != other.fields.get(key):
                    raise DataError(
                        f"{alike[0].path} has {key} {alike[0].fields.get(key)!r}, {other.path} has {other.fields.get(key)!r}",
                        "evaluate one of them again, the same way",
                    )


def _judgements(gathered: Gathered) -> None:
    """Reads every predictions file once; items are matched by id."""
    first: tuple[Path, list[Any]] | None = None
    for member in gathered.members:
        for seed, result in member.results.items():
            if seed is None:
                continue
            judged = _judged(result)
            if not judged:
                member.absent[seed] = (
                    f"no predictions of {result.set}: the accuracy is shown, but nothing can be paired"
                )
                continue
            first = first or (result.path, list(judged))
            if judged.keys() != set(first[1]):
                raise DataError(
                    f"{first[0]} and {result.path} have predictions of different items",
                    "evaluate one of them again",
                )
            gathered.correct.setdefault(member.name, {})[seed] = np.array([judged[key] for key in first[1]])


def _judged(result: RunResult) -> dict[Any, bool]:
    """Item -> right or wrong, as the results file counts them."""
    lines = result.predictions()
    again = "evaluate again, or kava rescore"
    for number, item in enumerate(lines, 1):
        if "id" not in item or not isinstance(item.get("correct"), bool):
            raise DataError(f"predictions of {result.path}, line {number}: no field id or correct", again)
    judged = {item["id"]: item["correct"] for item in lines}
    if lines and (len(lines), len(judged)) != (result.total, result.total):
        raise DataError(f"{result.path} has {result.total} items, its predictions {len(judged)} of them", again)
    if lines and result.correct is not None and sum(judged.values()) != result.correct:
        raise DataError(f"{result.path} counts {result.correct} right, its predictions {sum(judged.values())}", again)
    return judged
