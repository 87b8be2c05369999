"""How the runs were made: what they share, what differs, hashes, versions, devices, times, commands."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from kava.lab.analysis.study import Study, StudyMember
from kava.lab.page.blocks import (
    Block,
    CommandLines,
    Details,
    Facts,
    Missing,
    PageSection,
    Paragraph,
    Table,
    rows_by_group,
    titled,
)
from kava.lab.page.formats import DASH, code, counted, distinct, join, listed, number, seconds, seed_name
from kava.lab.page.heat import mean_of_known

SEED = "system.seed"


def settings(study: Study) -> PageSection:
    recipes = {id(run): flat(run.recipe) for run in study.runs if run.recipe}
    parts: dict[str, Sequence[Block]] = {
        "What differs": _recipes(study, recipes) if recipes else (),
        "": () if recipes else [Missing("No run has its recipe.yaml beside the results.", "kava train")],
        "Data, machines and times": [_machines(study), _provenance(study)],
        "Commands to repeat them": _commands(study),
    }
    return PageSection("settings", "How the runs were made", tuple(titled(parts)))


def _recipes(study: Study, recipes: Mapping[int, Mapping[str, Any]]) -> list[Block]:
    """Settings that differ between the recipes, and those that all share."""
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe if key != SEED))
    first = next(iter(recipes.values()))
    differing = [key for key in keys if any(recipe.get(key) != first.get(key) for recipe in recipes.values())]
    shared = [(key, _as_written(first.get(key))) for key in keys if key not in differing]
    words = f"{len(shared)} settings are the same in all {counted(len(recipes), 'run')} with a recipe."
    if differing:
        table: Block = _differing(study, recipes, differing)
    else:
        table = Paragraph("Nothing but the seed." if len(recipes) > 1 else "There is one run.")
    details = Details("The settings they share", (Table(("setting", "value"), shared, "Shared settings"),))
    return [table, Paragraph(words), details]


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names: {"loss.alpha2_kv": 1.0, ...}"""
    flattened: dict[str, Any] = {}
    for key, setting in recipe.items():
        if isinstance(setting, dict) and setting:
            flattened |= flat(setting, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = setting
    return flattened


def _as_written(setting: Any) -> str:
    """A setting as a recipe writes it."""
    if isinstance(setting, list):
        return f"[{', '.join(map(_as_written, setting))}]"
    if isinstance(setting, float):
        return f"{setting:g}"
    return setting if isinstance(setting, str) and setting else json.dumps(setting)


def _differing(study: Study, recipes: Mapping[int, Mapping[str, Any]], keys: Sequence[str]) -> Table:
    def row(member: StudyMember) -> Sequence[Any]:
        by_seed = [(seed_name(run.seed), recipes[id(run)]) for run in member.runs if id(run) in recipes]
        return (member.label, *(_for_all_seeds(by_seed, key) for key in keys))

    members = [member for member in study.members if any(id(run) in recipes for run in member.runs)]
    return Table(("member", *keys), rows_by_group(members, row), "Settings that differ")


def _for_all_seeds(by_seed: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> str:
    """One value where the member's seeds agree; else each seed's."""
    values = [(seed, _as_written(recipe[key]) if key in recipe else DASH) for seed, recipe in by_seed]
    if len({setting for _, setting in values}) == 1:
        return values[0][1]
    return "; ".join(f"{seed}: {setting}" for seed, setting in values)


def _machines(study: Study) -> Block:
    keys = ("steps", "effective_batch_size", "trained_parameters", "device", "threads")
    rows = []
    for member in study.members:
        metas = [run.meta for run in member.runs if run.meta]
        if metas:
            times = [float(meta["seconds"]) for meta in metas if meta.get("seconds") is not None]
            cells = [listed(distinct(number(meta[key]) for meta in metas if meta.get(key) is not None)) for key in keys]
            data = sorted({str((meta.get("data") or {}).get("sha256"))[:12] for meta in metas})
            time = seconds(mean_of_known(times))
            rows.append((member.label, len(metas), *(cell or DASH for cell in cells), time, listed(data)))
    header = ("member", "runs", "updates", "batch", "trained parameters", "device", "threads", "time per run", "data")
    return Table(header, rows, "Machines and times") if rows else Missing("No run has a meta.json.", "kava train")


def _provenance(study: Study) -> Facts:
    """Versions and revisions of training, hashes of the test sets."""
    metas = [run.meta for run in study.runs]
    versions = Counter(_versions(meta["versions"]) for meta in metas if meta.get("versions"))
    rows: list[tuple[str, Any]] = [
        ("trained with", f"{words} ({counted(count, 'run')})") for words, count in versions.items()
    ]
    rows += [("git", code(revision)) for revision in distinct(meta.get("git") or None for meta in metas)]
    rows += [("platform", name) for name in distinct(meta.get("platform") or None for meta in metas)]
    for label in study.sets:
        results = [r for member in study.entries for _, r in study.score(member, label).results]
        hashes = distinct(r.sha256 or None for r in results)
        rows += [(f"set {label}", join(["sha256", code(sha)])) for sha in hashes]
        rows += [(f"asked {label}", words) for words in distinct(_eval_settings(r.fields) for r in results)]
    return Facts(rows)


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _eval_settings(fields: Mapping[str, Any]) -> str:
    keys = ("mode", "cue", "max_new_tokens", "temperature", "top_p", "batch_size", "device", "metric")
    return ", ".join(f"{key.replace('_', ' ')} {_as_written(fields[key])}" for key in keys if key in fields)


def _commands(study: Study) -> list[Block]:
    """What to type to get these runs again: the suite's command, and that of every member's first run."""
    lines = [suite_command(suite) for suite in study.suites.values()]
    lines += filter(None, map(command_of, study.members))
    if not lines:
        return []
    note = "Per member the command of its first run; the other seeds differ in --seed and the folder."
    return [Paragraph(note), CommandLines(lines)]


def suite_command(suite: Mapping[str, Any]) -> str:
    """The command line of a suite by its suite.json: all members, seeds and settings of the calls that wrote it."""
    words = ["kava", "suite", str(suite.get("suite", "")), "--config", str(suite.get("config", ""))]
    words += ["--seeds", *map(str, suite.get("seeds", ())), "--members", *suite.get("members", ())]
    words += ["--datasets", *suite["datasets"]] if suite.get("datasets") else []
    words += ["--output_dir", suite["output_dir"]] if suite.get("output_dir", "outputs") != "outputs" else []
    words += ["--quick_test"] if suite.get("quick_test") else []
    return shlex.join([*words, *suite.get("settings", ())])


def command_of(member: StudyMember) -> str:
    """The command line that meta.json recorded, with `kava` for the path of the program; "" where it has none."""
    for run in member.runs:
        words = [str(word) for word in run.meta.get("command") or ()]
        if words:
            program = "kava" if "kava" in PurePath(words[0]).parts or PurePath(words[0]).name == "kava" else words[0]
            return shlex.join([program, *words[1:]])
    return ""
