"""Read run folders into a `Study`: members in order and groups, and the sets that have results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kava.config import show
from kava.config.text import parse_text
from kava.config.typed_file import read_dict
from kava.errors import ConfigError
from kava.lab.analysis.runs import MODES, SUITE, Run, RunResult, differing_items, find_runs, same_items
from kava.lab.analysis.study import GROUPS, Study, StudyMember, label_of, plain, value, with_looks
from kava.lab.analysis.suite_file import SuiteFile
from kava.run_files import AGAIN

DIFFERENCES = 3  # settings that a label names
Entry = Mapping[str, Any]  # a member's entry in suite.json: title, settings, mode


def load_study(roots: Sequence[Path], sets: Sequence[str] = (), strict: bool = True) -> Study:
    """The runs below `roots`, reported on `sets` (default: every whole set).

    `strict` tells apart runs of one name with other settings, as members, and results under one set's name that are on
    other items, as sets; it refuses a seed that a member has twice, and a member's results on different items.
    """
    runs = _sets_told_apart(find_runs(roots)) if strict else find_runs(roots)
    suites = {path.parent: read_dict(path, SuiteFile, AGAIN) for path in _suite_files(roots)}
    entries: dict[str, Entry] = {n: entry for suite in suites.values() for n, entry in suite.get("members", {}).items()}
    resolved = {root.resolve() for root in roots}
    planned = [name for folder, suite in suites.items() if folder in resolved for name in suite.get("members", {})]
    labels = list(dict.fromkeys(label_of(result) for run in runs for result in run.results))
    reported = _reported(runs, labels, sets)
    members = _members(runs, entries, planned, strict)
    if strict:
        _refuse_mixed(members)
    return Study(
        members=tuple(members),
        sets=tuple(reported),
        left_out=tuple(label for label in labels if label not in reported),
        suites=suites,
        broken={
            (folder / name).resolve(): str(line)
            for folder, suite in suites.items()
            for name, line in suite.get("broken", {}).items()
        },
        roots=tuple(roots),
    )


def _sets_told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; a set's name under which results are on different items becomes one name for each of them."""
    kinds: dict[str, list[RunResult]] = {}  # label -> a result on each collection of items

    def kind_of(result: RunResult) -> int:
        known = kinds.setdefault(label_of(result), [])
        number = next((i for i, other in enumerate(known) if not differing_items(other, result)), len(known))
        known += [result] if number == len(known) else []
        return number

    numbers = {result.path: kind_of(result) for run in runs for result in run.results}

    def named(result: RunResult) -> RunResult:
        known, number = kinds[label_of(result)], numbers[result.path]
        if len(known) == 1:
            return result
        totals = [other.total for other in known]
        more = "" if totals.count(result.total) == 1 else f", {(known[number].sha256 or '-')[:8]}"
        return replace(result, set=f"{result.set} ({result.total} items{more})")

    return [replace(run, results=tuple(map(named, run.results))) for run in runs]


def _refuse_mixed(members: Sequence[StudyMember]) -> None:
    for member in members:
        first_of: dict[int | None, Run] = {}
        for run in member.runs:
            first = first_of.setdefault(run.seed, run)
            if first is not run:
                twice = f"two runs of {member.label}, seed {run.seed}: {first.folder} and {run.folder}"
                raise ConfigError(twice, "leave one out or rename it")
        first_on: dict[str, RunResult] = {}  # a file's name -> the result in the first run that has it
        for result in (result for run in member.runs for result in run.results):
            same_items(first_on.setdefault(result.path.name, result), result)


def _reported(runs: Sequence[Run], labels: Sequence[str], sets: Sequence[str]) -> list[str]:
    """`sets`, else every whole set; parts of a set (.limit16) only where there is nothing else."""
    for name in sets:
        if name not in labels:
            known = ", ".join(labels) or "none; kava evaluate writes them"
            raise ConfigError(f"no results on {name!r} in these runs", f"sets with results: {known}")
    whole = {result.set for run in runs for result in run.results}
    return list(dict.fromkeys(sets)) or [label for label in labels if label in whole] or list(labels)


def _suite_files(roots: Sequence[Path]) -> list[Path]:
    """suite.json in a suite's folder, in those directly below a tree, and above a single member or run."""
    paths: dict[Path, None] = {}
    for root in roots:
        whole = root.resolve()
        above = (folder / SUITE for folder in (whole.parent.parent, whole.parent, whole))
        paths |= dict.fromkeys(path for path in (*above, *sorted(whole.glob(f"*/{SUITE}"))) if path.is_file())
    return list(paths)


def _members(
    runs: Sequence[Run], entries: Mapping[str, Entry], planned: Sequence[str], tell_apart: bool
) -> list[StudyMember]:
    """Runs grouped by name, and with `tell_apart` by what is trained; a member that its suite plans and that has no run is
    included, with none."""
    lines: dict[str, set[str]] = {}
    for run in runs:
        lines.setdefault(run.member, set()).add(_line(run))
    labels = [run.member if len(lines[run.member]) == 1 else f"{_line(run)}/{run.member}" for run in runs]
    if tell_apart:
        labels = _by_settings(runs, labels)
    names = {name: name for name in planned if len(lines.get(name, ())) < 2}
    names |= {label: run.member for label, run in zip(labels, runs, strict=True)}
    members = []
    for label, name in names.items():
        inside = tuple(run for run, of_run in zip(runs, labels, strict=True) if of_run == label)
        entry = entries.get(name, {})
        mode = str(entry.get("mode") or _own_mode(inside))
        members.append(StudyMember(label, str(entry.get("title", "")), mode, _group(inside, mode, entry), inside))
    groups, order = list(GROUPS), list(entries)
    rank = {label: order.index(name) if name in order else len(order) for label, name in names.items()}
    return with_looks(sorted(members, key=lambda member: (groups.index(member.group), rank[member.label])))


def _by_settings(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """The runs' labels; where runs of one label were trained with other settings, with what differs."""
    recipes: dict[str, list[dict[str, Any]]] = {}  # label -> each recipe that its runs have
    for run, label in zip(runs, labels, strict=True):
        known = recipes.setdefault(label, [])
        if run.recipe and run.trained_settings not in known:
            known.append(run.trained_settings)

    def named(run: Run, label: str) -> str:
        known = recipes[label]
        if len(known) < 2 or not run.recipe:
            return label
        keys = [key for key in dict.fromkeys(key for one in known for key in one) if _varies(key, known)]
        words = [f"{key.rpartition('.')[2]}={show(run.trained_settings.get(key))}" for key in keys[:DIFFERENCES]]
        words += [f"recipe {known.index(run.trained_settings) + 1}"] if len(keys) > DIFFERENCES else []
        return f"{label} ({', '.join(words)})"

    return [named(run, label) for run, label in zip(runs, labels, strict=True)]


def _varies(key: str, recipes: Sequence[Mapping[str, Any]]) -> bool:
    return any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)


def _line(run: Run) -> str:
    """The name of the folder that holds the run's member."""
    whole = run.folder.resolve()
    return whole.parent.parent.name if whole.name.startswith("seed_") else whole.parent.name


def _own_mode(runs: Sequence[Run]) -> str:
    """The first mode with results that carry no note (a note says that the student was not trained for it)."""
    results = [result for run in runs for result in plain(run)]
    fitting = [mode for mode in MODES if any(r.mode == mode and "note" not in r.fields for r in results)]
    return (fitting or [mode for mode in MODES if any(r.mode == mode for r in results)] or ["latent"])[0]


def _group(runs: Sequence[Run], mode: str, entry: Entry) -> str:
    recipe = next((run.recipe for run in runs if run.recipe), None)
    if recipe is None and "settings" not in entry:
        return "unknown"
    if recipe is None:  # nothing trained yet, or broken at once: the settings that its suite planned
        recipe = {"loss": {"alpha2_kv": 1}, "latent": {"num_tokens": 1}}
        for setting in entry["settings"]:
            key, _, text = str(setting).partition("=")
            section, _, name = key.partition(".")
            recipe.setdefault(section, {})[name] = parse_text(text, key)
    explicit = bool(value(recipe, "explicit.enabled"))
    taught = explicit or (mode != "cot" and value(recipe, "latent.num_tokens"))
    if not taught or not value(recipe, "loss.alpha2_kv"):
        return "none"
    return "kv" if value(recipe, "rkv.shuffle") in (None, "none") else "spoiled"
