"""Run folders to a `Study`: who takes part, in which order and group, and which items everyone was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava.config.text import parse_text
from kava.errors import ConfigError
from kava.lab.analysis.runs import MODES, SUITE, Run, RunResult, find_runs, read_mapping, same_items
from kava.lab.analysis.study import GROUPS, Study, StudyMember, label_of, plain, value, with_looks

About = Mapping[str, Any]  # a member's entry in suite.json: title, settings, mode


def load_study(roots: Sequence[Path], sets: Sequence[str] = ()) -> Study:
    """The runs below `roots`; refuses results that stand under one set's name and are about other items."""
    runs = find_runs(roots)
    check_items(runs)
    suites = {path.parent: read_mapping(path) for path in _suite_files(roots)}
    about: dict[str, About] = {name: one for suite in suites.values() for name, one in suite.get("members", {}).items()}
    whole = {root.resolve() for root in roots}
    asked = [name for folder, suite in suites.items() if folder in whole for name in suite.get("members", {})]
    found = list(dict.fromkeys(label_of(result) for run in runs for result in run.results))
    shown = _shown(runs, found, sets)
    return Study(
        members=tuple(_members(runs, about, asked)),
        sets=tuple(shown),
        left_out=tuple(label for label in found if label not in shown),
        suites=suites,
        broken={
            (folder / name).resolve(): str(line)
            for folder, suite in suites.items()
            for name, line in suite.get("broken", {}).items()
        },
        roots=tuple(roots),
    )


def check_items(runs: Sequence[Run]) -> None:
    first: dict[str, RunResult] = {}
    for run in runs:
        for result in run.results:
            same_items(first.setdefault(label_of(result), result), result)


def _shown(runs: Sequence[Run], found: Sequence[str], sets: Sequence[str]) -> list[str]:
    """The sets asked for; else every whole set; parts of a set (.limit16) only where there is nothing else."""
    for name in sets:
        if name not in found:
            known = ", ".join(found) or "none; kava evaluate writes them"
            raise ConfigError(f"no results on {name!r} in these runs", f"sets with results: {known}")
    whole = {result.set for run in runs for result in run.results}
    return list(dict.fromkeys(sets)) or [label for label in found if label in whole] or list(found)


def _suite_files(roots: Sequence[Path]) -> list[Path]:
    """suite.json in a suite's folder, in those right below a tree, and above a single member or run."""
    found: dict[Path, None] = {}
    for root in roots:
        whole = root.resolve()
        above = [whole.parent.parent / SUITE, whole.parent / SUITE]
        for path in [*above, whole / SUITE, *sorted(whole.glob(f"*/{SUITE}"))]:
            if path.is_file():
                found[path] = None
    return list(found)


def _members(runs: Sequence[Run], about: Mapping[str, About], asked: Sequence[str]) -> list[StudyMember]:
    """Runs of one name together; a member that its suite names and that has no run is there, with none."""
    lines: dict[str, set[str]] = {}
    for run in runs:
        lines.setdefault(run.member, set()).add(_line(run))
    by_label: dict[str, list[Run]] = {name: [] for name in asked if len(lines.get(name, ())) < 2}
    names = {name: name for name in by_label}
    for run in runs:
        label = run.member if len(lines[run.member]) == 1 else f"{_line(run)}/{run.member}"
        by_label.setdefault(label, []).append(run)
        names[label] = run.member
    found = []
    for label, inside in by_label.items():
        _one_run_each(label, inside)
        entry = about.get(names[label], {})
        mode = str(entry.get("mode") or _own_mode(inside))
        found.append(StudyMember(label, str(entry.get("title", "")), mode, _group(inside, mode, entry), tuple(inside)))
    places, order = list(GROUPS), list(about)
    rank = {label: order.index(name) if name in order else len(order) for label, name in names.items()}
    return with_looks(sorted(found, key=lambda member: (places.index(member.group), rank[member.label])))


def _one_run_each(label: str, runs: Sequence[Run]) -> None:
    seen: dict[int | None, Run] = {}
    for run in runs:
        other = seen.setdefault(run.seed, run)
        if other is not run:
            raise ConfigError(
                f"two runs of {label}, seed {run.seed}: {other.folder} and {run.folder}", "leave one out or rename it"
            )


def _line(run: Run) -> str:
    """The name of the folder that a run's member lies in."""
    whole = run.folder.resolve()
    return whole.parent.parent.name if whole.name.startswith("seed_") else whole.parent.name


def _own_mode(runs: Sequence[Run]) -> str:
    """The first mode with results that carry no note (a note says that it was not trained for)."""
    results = [result for run in runs for result in plain(run)]
    fitting = [mode for mode in MODES if any(r.mode == mode and "note" not in r.fields for r in results)]
    return (fitting or [mode for mode in MODES if any(r.mode == mode for r in results)] or ["latent"])[0]


def _group(runs: Sequence[Run], mode: str, about: About) -> str:
    recipe = next((run.recipe for run in runs if run.recipe), None)
    if recipe is None and "settings" not in about:
        return "unknown"
    if recipe is None:  # nothing trained yet, or broken at once: what its suite asked for
        recipe = {"loss": {"alpha2_kv": 1}, "latent": {"num_tokens": 1}}
        for setting in about["settings"]:
            key, _, text = str(setting).partition("=")
            section, _, name = key.partition(".")
            recipe.setdefault(section, {})[name] = parse_text(text, key)
    explicit = bool(value(recipe, "explicit.enabled"))
    taught = explicit or (mode != "cot" and value(recipe, "latent.num_tokens"))
    if not taught or not value(recipe, "loss.alpha2_kv"):
        return "none"
    return "kv" if value(recipe, "rkv.shuffle") in (None, "none") else "spoiled"
