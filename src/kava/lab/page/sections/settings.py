"""How the runs were made: what they share, what differs, hashes, versions, devices, times, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any

from kava.lab.analysis.runs import Run
from kava.lab.analysis.study import Study, StudyMember, panels
from kava.lab.page.markup import (
    NONE,
    Heading,
    Html,
    Row,
    code,
    counted,
    details,
    join,
    listed,
    missing,
    number,
    paragraph,
    seconds,
    seed_name,
    table,
    tag,
    text,
)
from kava.lab.page.sections.section import Section

SEED = "system.seed"


def settings(study: Study) -> Section:
    recipes = {id(run): flat(run.recipe) for run in study.runs if run.recipe}
    if not recipes:
        nothing = missing("No run has its recipe.yaml beside the results.", "kava train")
        return Section("settings", "How the runs were made", (nothing, *_machines(study)))
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe if key != SEED))
    first = next(iter(recipes.values()))
    differing = [key for key in keys if any(recipe.get(key) != first.get(key) for recipe in recipes.values())]
    shared = [(key, _shown(first.get(key))) for key in keys if key not in differing]
    parts: list[Html] = [tag("h3", "What differs")]
    if differing:
        parts.append(_differing(study, recipes, differing))
    else:
        parts.append(paragraph("Nothing but the seed." if len(recipes) > 1 else "There is one run."))
    words = paragraph(f"{len(shared)} settings are the same in all {counted(len(recipes), 'run')} with a recipe.")
    parts += [words, details("The settings they share", table(("setting", "value"), shared, "Shared settings"))]
    return Section("settings", "How the runs were made", (*parts, *_machines(study)))


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss.alpha2_kv": 1.0, ...}"""
    found: dict[str, Any] = {}
    for key, one in recipe.items():
        if isinstance(one, dict) and one:
            found |= flat(one, f"{prefix}{key}.")
        else:
            found[prefix + key] = one
    return found


def _shown(setting: Any) -> str:
    """As a recipe writes it."""
    if isinstance(setting, list):
        return f"[{', '.join(map(_shown, setting))}]"
    if isinstance(setting, float):
        return f"{setting:g}"
    return setting if isinstance(setting, str) and setting else json.dumps(setting)


def _differing(study: Study, recipes: Mapping[int, Mapping[str, Any]], keys: Sequence[str]) -> Html:
    rows: list[Row] = []
    for group in panels([member for member in study.members if any(id(run) in recipes for run in member.runs)]):
        rows += [Heading(group.title)] if group.title else []
        for member in group.members:
            mine = [(run, recipes[id(run)]) for run in member.runs if id(run) in recipes]
            rows.append((member.label, *(_by_seed(mine, key) for key in keys)))
    return table(("member", *keys), rows, "Settings that differ")


def _by_seed(mine: Sequence[tuple[Run, Mapping[str, Any]]], key: str) -> str:
    """One value where the member's seeds agree; else each seed's."""
    shown = [(seed_name(run.seed), _shown(recipe[key]) if key in recipe else NONE) for run, recipe in mine]
    if len({setting for _, setting in shown}) == 1:
        return shown[0][1]
    return "; ".join(f"{seed}: {setting}" for seed, setting in shown)


def _machines(study: Study) -> list[Html]:
    parts = [tag("h3", "Data, machines and times")]
    rows: list[Row] = []
    for member in study.members:
        runs = [run for run in member.runs if run.meta]
        if not runs:
            continue
        times = [float(run.meta["seconds"]) for run in runs if run.meta.get("seconds") is not None]
        rows.append((
            member.label, len(runs), _all(runs, "steps"), _all(runs, "effective_batch_size"),
            _all(runs, "trained_parameters"), _all(runs, "device"), _all(runs, "threads"),
            seconds(fmean(times)) if times else NONE,
            listed(sorted({str((run.meta.get("data") or {}).get("sha256"))[:12] for run in runs})),
        ))  # fmt: skip
    header = ("member", "runs", "updates", "batch", "trained parameters", "device", "threads", "time per run", "data")
    if rows:
        parts.append(table(header, rows, "Machines and times"))
    else:
        parts.append(missing("No run has a meta.json.", "kava train"))
    return [*parts, _provenance(study), *_commands(study)]


def _all(runs: Sequence[Run], key: str) -> str:
    return listed(list(dict.fromkeys(number(run.meta[key]) for run in runs if run.meta.get(key) is not None))) or NONE


def _provenance(study: Study) -> Html:
    """Versions and revisions of training, hashes of the test sets."""
    rows: list[tuple[str, Any]] = []
    for words, runs in _grouped(study.runs).items():
        rows.append(("trained with", f"{words} ({counted(runs, 'run')})"))
    for git in dict.fromkeys(str(run.meta["git"]) for run in study.runs if run.meta.get("git")):
        rows.append(("git", code(git)))
    for platform in dict.fromkeys(str(run.meta["platform"]) for run in study.runs if run.meta.get("platform")):
        rows.append(("platform", platform))
    for label in study.sets:
        found = [r for member in study.entries for _, r in study.score(member, label).results]
        for sha in dict.fromkeys(str(r.sha256) for r in found if r.sha256):
            rows.append((f"set {label}", join([text("sha256"), code(sha)], " ")))
        for words in dict.fromkeys(_asked(r.fields) for r in found):
            rows.append((f"asked {label}", words))
    return tag("dl", join(join([tag("dt", name), tag("dd", words)], "") for name, words in rows))


def _grouped(runs: Sequence[Run]) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in runs:
        versions = run.meta.get("versions")
        if versions:
            words = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
            found[words] = found.get(words, 0) + 1
    return found


def _asked(fields: Mapping[str, Any]) -> str:
    keys = ("mode", "cue", "max_new_tokens", "temperature", "top_p", "batch_size", "device", "metric")
    return ", ".join(f"{key.replace('_', ' ')} {_shown(fields[key])}" for key in keys if key in fields)


def _commands(study: Study) -> list[Html]:
    """What to type to get these runs again: the suite's, or every member's first run."""
    lines = []
    for suite in study.suites.values():
        words = ["kava", "suite", str(suite.get("suite", "")), "--config", str(suite.get("config", ""))]
        words += ["--seeds", *map(str, suite.get("seeds", ()))]
        lines.append(" ".join(words))
    singles = [command_of(member) for member in study.members]
    lines += [line for line in singles if line]
    if not lines:
        return []
    note = paragraph("Per member the command of its first run; the other seeds differ in --seed and the folder.")
    block = tag("pre", tag("code", "\n".join(lines)), tabindex="0")
    return [tag("h3", "Commands to repeat them"), note, block]


def command_of(member: StudyMember) -> str:
    """The command line that meta.json recorded, with `kava` for the path of the program."""
    for run in member.runs:
        words = [str(word) for word in run.meta.get("command") or ()]
        if words:
            program = "kava" if "kava" in PurePath(words[0]).parts or PurePath(words[0]).name == "kava" else words[0]
            return shlex.join([program, *words[1:]])
    return ""
