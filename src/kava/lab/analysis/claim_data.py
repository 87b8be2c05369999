"""The runs that an analysis of claims compares: which exist, which are missing and why, and whether they are comparable."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kava.errors import ConfigError, DataError, RunError
from kava.lab.analysis.claims import CLAIMS, E1, E2, E3, E4, E5, METHODS, SINGLE, TEACHERS, WRITTEN
from kava.lab.analysis.load_study import load_study
from kava.lab.analysis.runs import Run, refuse_incomparable
from kava.lab.analysis.study import COUNTED, Study, StudyMember, label_of, plain, whole_first
from kava.lab.suites.passes import passes_per_update
from kava.registry import nearest

OF_CLAIMS = [name for claim in CLAIMS for name in claim.members]
KNOWN = tuple(dict.fromkeys(["E0_ce_only", E1, E2, E3, E4, E5, *OF_CLAIMS, *WRITTEN, *METHODS, *TEACHERS]))
ONE_CONFIG = "compare runs of one recipe with equal data and updates; --experiments names them"
ASKED = f"{ONE_CONFIG}; or compare them all the same, so labelled, with --unequal_budget"


@dataclass(frozen=True)
class ClaimData:
    """The members to compare, with their runs that were trained to the end, on the one set of `study.sets` (or none).

    `absent` is member -> seed -> why it enters no comparison, `left_out` the other members below the folder, `correct`
    member -> seed -> right or wrong per item, in the same order of items for all.
    """

    study: Study
    seeds: list[int]
    absent: Mapping[str, dict[int, str]]
    left_out: list[str]
    correct: Mapping[str, dict[int, NDArray[np.bool_]]]


def claim_data(
    base: Path, experiments: Sequence[str] = (), dataset: str | None = None, unequal: bool = False
) -> ClaimData:
    """The runs below `base` of the experiments (default: those of suites with claims), checked and paired by seed.

    `unequal`: members may differ in updates and examples per update, each alike over its seeds.
    """
    whole = load_study([base], strict=False)
    inside = base.resolve()
    suites = [suite for folder, suite in whole.suites.items() if inside in (folder, folder.parent)]
    planned: dict[str, Mapping[str, Any]] = {}  # member -> its suite, the first that has it
    for suite in suites:
        for name in suite.get("members", {}):
            planned.setdefault(name, suite)
    names = _names(list(dict.fromkeys([*planned, *(run.member for run in whole.runs)])), experiments)
    runs = {name: _runs(name, whole.runs) for name in names}
    members = [_member(name, runs[name], planned.get(name, {})) for name in names]
    runs_of_all = [run for member in members for run in member.runs]
    _refuse_unequal(runs_of_all, ALIKE, "unequal budget")
    for part in [member.runs for member in members] if unequal else [runs_of_all]:
        _refuse_unequal(part, WORK, "unequal budget", None if unequal else ASKED)
    for member in members:
        _refuse_unequal(member.runs, {"settings": _settings}, f"different settings in {member.label}")
    set_name = _set(members, [name for suite in suites for name in suite.get("sets", [])], dataset)
    study = replace(whole, members=tuple(members), sets=(set_name,) if set_name else ())
    seeds = {run.seed for name in names for run in runs[name] if run.seed is not None}
    seeds |= {seed for name in names for seed in planned.get(name, {}).get("seeds", ())}
    absent = {member.label: _absent(study, member, runs[member.label], sorted(seeds)) for member in members}
    left_out = sorted({run.member for run in whole.runs} - set(names))
    refuse_incomparable([result for member in members for result in study.results(member).values()])
    return ClaimData(study, sorted(seeds), absent, left_out, _correct(study, absent))


def _names(names: list[str], experiments: Sequence[str]) -> list[str]:
    """The experiments to analyse, of all `names` below the folder."""
    wanted = list(dict.fromkeys(Path(name).name for name in experiments))
    for name in wanted:
        if name not in names and _known(name) not in KNOWN:
            raise ConfigError(f"no experiment {name!r} below the folder", nearest(name, names))
    known = sorted((name for name in names if _known(name) in KNOWN), key=lambda name: KNOWN.index(_known(name)))
    if not wanted and not known:
        others = f"no experiment of a suite with claims (e1-e5, methods, phases, stages), only {', '.join(names[:8])}"
        raise RunError(others, "name what to compare with --experiments")
    return wanted or known


def _known(name: str) -> str:
    """The name that `KNOWN` has for a member; any number of members may be single teachers."""
    return SINGLE if name.startswith(SINGLE) else name


def _runs(name: str, runs: Iterable[Run]) -> list[Run]:
    """The member's runs, at most one for each seed; the seed may be in the results only."""
    by_seed: dict[int | None, Run] = {}
    of_member = [run for run in runs if run.member == name]
    for run in sorted(of_member, key=lambda run: (run.seed is None, run.seed or 0, run.folder)):
        seed = run.seed
        if seed is None:
            seed = next((result.fields["seed"] for result in run.results if "seed" in result.fields), None)
        if seed in by_seed:
            twice = f"{name}, seed {seed} is there twice: {by_seed[seed].folder} and {run.folder}"
            raise DataError(twice, "give --output_base the folder of one of them")
        by_seed[seed] = replace(run, seed=seed)
    return list(by_seed.values())


def _member(name: str, runs: Sequence[Run], suite: Mapping[str, Any]) -> StudyMember:
    entry = suite.get("members", {}).get(name, {})
    explicit = name in WRITTEN or any(run.explicit for run in runs)
    mode = entry.get("mode") or ("cot" if explicit else "latent")
    return StudyMember(name, entry.get("title", ""), mode, "", tuple(run for run in runs if run.status in COUNTED))


def _config(run: Run) -> Any:
    names = [result.fields.get("config") for result in run.results]
    return run.recipe.get("about", {}).get("name") or next((name for name in names if name), None)


def _settings(run: Run) -> dict[str, Any] | None:
    """What a recipe trains, without seed and data (their hash is compared); None without a recipe."""
    return {key: value for key, value in run.trained_settings.items() if not key.startswith("dataset.")} or None


ALIKE: dict[str, Callable[[Run], Any]] = {
    "config": _config,
    "training data (sha256)": lambda run: run.meta.get("data", {}).get("sha256"),
}
WORK: dict[str, Callable[[Run], Any]] = {
    "updates": lambda run: run.meta.get("steps"),
    "effective batch size": lambda run: run.meta.get("effective_batch_size"),
}
BUDGET = ALIKE | WORK


def work_of(member: StudyMember) -> dict[str, int | None]:
    """Updates, examples of an update, and forward passes of the training of one of the member's runs."""
    if not member.runs:
        return {}
    run = member.runs[0]
    facts = {name: fact(run) for name, fact in WORK.items()}
    passes, updates = passes_per_update(run.recipe), facts["updates"]
    return facts | {"training passes": None if passes is None or updates is None else round(updates * passes)}


def unequal_words(work: Mapping[str, Mapping[str, int | None]]) -> str:
    """The label of an analysis of unequal budgets: what each experiment had."""
    each = [f"{name} {facts['updates']} ({facts['training passes'] or '?'})" for name, facts in work.items()]
    return (
        "AN UNEQUAL BUDGET, as asked for: no difference below is that of a method alone. Updates, and in brackets forward "
        f"passes of training: {', '.join(each)}."
    )


def _refuse_unequal(
    runs: Iterable[Run], facts: Mapping[str, Callable[[Run], Any]], what: str, hint: str | None = None
) -> None:
    """Refuse runs that are known to differ in one of the facts."""
    for name, fact in facts.items():
        known = [(run, fact(run)) for run in runs if fact(run) is not None]
        for run, value in known[1:]:
            first, expected = known[0]
            if value == expected:
                continue
            if isinstance(value, dict):  # only what differs
                expected, value = (
                    {key: setting for key, setting in these.items() if others.get(key) != setting}
                    for these, others in ((expected, value), (value, expected))
                )
            raise DataError(
                f"{what}: {first.folder} has {name} {expected}, {run.folder} has {value}", hint or ONE_CONFIG
            )


def _set(members: Sequence[StudyMember], planned: Sequence[str], dataset: str | None) -> str | None:
    """--dataset, or the first set on which every experiment with results was evaluated; None without any results."""
    results = [[r for run in member.runs for r in plain(run) if r.mode == member.mode] for member in members]
    kept = {label_of(result) for result in whole_first([r for of_member in results for r in of_member])}
    of_members = [sets for of_member in results if (sets := kept & {label_of(result) for result in of_member})]
    every = set().union(*of_members)
    if dataset is not None:
        if dataset not in every:
            raise ConfigError(f"no results of {dataset!r}", "there are: " + (", ".join(sorted(every)) or "none"))
        return dataset
    common = set.intersection(*of_members) if of_members else set()
    if every and not common:
        others = f"no set that every experiment was asked; there are {', '.join(sorted(every))}"
        raise DataError(others, "choose one with --dataset")
    runs = [run for member in members for run in member.runs]
    in_recipes = [name for run in runs for name in run.recipe.get("evaluation", {}).get("datasets", [])]
    candidates = [*planned, *in_recipes, *sorted(common)]
    return next((name for name in candidates if name in common), None)


def _absent(study: Study, member: StudyMember, runs: Sequence[Run], seeds: Sequence[int]) -> dict[int, str]:
    """Seed -> why it has no result on the set."""
    results = study.results(member)
    absent = dict.fromkeys(set(seeds) - {run.seed for run in runs}, "no run")
    for run in (run for run in runs if run.seed not in results):
        line = study.broken.get(run.folder.resolve())
        reason = f"{run.status}: {line}" if line else run.status
        if run.status in COUNTED:
            reason = f"{run.status}, no results" + "".join(f" of {label}" for label in study.sets)
        if run.seed is not None:
            absent[run.seed] = reason
    return dict(sorted(absent.items()))


def _correct(study: Study, absent: Mapping[str, dict[int, str]]) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Every predictions file as an array, items matched by id; a seed without predictions is noted in `absent`."""
    correct: dict[str, dict[int, NDArray[np.bool_]]] = {}
    first: tuple[Path, list[Any]] | None = None
    for member in study.members:
        for seed, result in study.results(member).items():
            if seed is None:
                continue
            judged = result.right_by_item()
            if not judged:
                reason = f"no predictions of {result.set}: the accuracy is shown, but nothing can be paired"
                absent[member.label][seed] = reason
                continue
            first = first or (result.path, list(judged))
            if judged.keys() != set(first[1]):
                different = f"{first[0]} and {result.path} have predictions of different items"
                raise DataError(different, "evaluate one of them again")
            correct.setdefault(member.label, {})[seed] = np.array([judged[key] for key in first[1]])
    return correct
