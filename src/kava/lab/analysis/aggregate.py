"""Mean and spread over seeds. The spread is the sample standard deviation; a seed without a result stays missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kava.errors import DataError, RunError
from kava.files import write_json, write_text
from kava.lab.analysis.runs import Run, RunResult, find_runs, learnt, named, same_items, writes_its_steps
from kava.lab.analysis.validations import held_out_numbers, over_seeds
from kava.provenance import versions

SAME = ("mode", "cue", "max_new_tokens", "temperature", "metric")  # results that differ here are not averaged
MEANING = (
    "accuracies are fractions of all items; *_std is the sample standard deviation over seeds (null for one seed); "
    "forward_passes_* are over each seed's mean per question; missing seeds enter nothing"
)


def aggregate(
    seed_dirs: Sequence[Path],
    datasets: Sequence[str],
    model_name: str | None = None,
    mode: str | None = None,
    config: str | None = None,
) -> dict[str, Any]:
    """{config: {num_seeds, datasets: {set: {accuracy_mean, ...}}}} as the reproduction guide shows it, and what it needs
    to be understood alone. Without `datasets`: every set that some seed has results of. Without `mode`: as the students
    were trained, in latents or (explicit line) with steps."""
    runs = _one_run_each(seed_dirs)
    explicit = any(writes_its_steps(run.recipe) for run in runs)
    mode = mode or ("cot" if explicit else "latent")
    sets = list(dict.fromkeys(datasets)) or _sets_of(runs, mode)
    if not sets:
        raise RunError("no seed has any results", "run kava evaluate on each seed's best_checkpoint first")
    recipe = next((run.recipe for run in runs if run.recipe), {})
    _same_settings(runs)
    body = {
        "model_name": model_name or recipe.get("model", {}).get("name"),
        "model": recipe.get("model", {}).get("name"),
        "dataset": recipe.get("dataset", {}).get("name"),
        "num_seeds": len(runs),
        "seeds": [run.seed for run in runs],
        "datasets": {name: _over_seeds(runs, name, mode) for name in sets},
        "unit": "fraction",
        "meaning": MEANING,
        "versions": versions(),
    }
    if held_out := over_seeds([held_out_numbers(run.log()) for run in runs]):
        body["held_out"] = held_out
    if all(not found["num_seeds"] for found in body["datasets"].values()):
        raise RunError(
            f"no seed has results of {', '.join(sets)} (mode {mode})", "run kava evaluate on each best_checkpoint first"
        )
    return {config or _config_name(runs): body}


def write(found: dict[str, Any], as_json: Path | None, as_yaml: Path | None) -> None:
    from kava.config.text import dump_yaml

    if as_json is not None:
        write_json(as_json, found)
    if as_yaml is not None:
        write_text(as_yaml, dump_yaml(found))


def missing(found: dict[str, Any]) -> list[str]:
    """A line for each set that some seed has no results of."""
    (body,) = found.values()
    return [
        f"{name}: no results of seed {', '.join(map(str, entry['missing']))}"
        for name, entry in body["datasets"].items()
        if entry["missing"]
    ]


def lines(found: dict[str, Any]) -> list[list[str]]:
    """Set, seeds, accuracy, spread, passes: a row per set for the console."""
    ((_, body),) = found.items()
    rows = []
    for name, entry in body["datasets"].items():
        mean, std, passes = entry["accuracy_mean"], entry["accuracy_std"], entry["forward_passes_mean"]
        rows.append(
            [
                name,
                f"{entry['num_seeds']} of {body['num_seeds']}",
                "-" if mean is None else f"{100 * mean:.1f} %",
                "-" if std is None else f"{100 * std:.1f}",
                "-" if passes is None else f"{passes:.1f}",
                " ".join(f"{100 * seed['accuracy']:.1f}" for seed in entry["per_seed"].values()),
            ]
        )
    return rows


def held_out_lines(found: dict[str, Any]) -> list[list[str]]:
    """Name, seeds, mean, spread: a row per held-out number; [] for a recipe without teachers of its own."""
    ((_, body),) = found.items()
    return [
        [name, str(one["num_seeds"]), f"{one['mean']:.4g}", "-" if one["std"] is None else f"{one['std']:.2g}"]
        for name, one in body.get("held_out", {}).items()
    ]


def _one_run_each(seed_dirs: Sequence[Path]) -> list[Run]:
    """The run of every folder; a folder that is not there, or is empty, is a seed without results."""
    runs: list[Run] = []
    for folder in dict.fromkeys(seed_dirs):
        found = [run for run in (find_runs([folder]) if _holds_something(folder) else []) if run.folder == folder]
        member, seed = named(folder)
        runs += found or [Run(folder, member, seed, "missing", {}, {}, ())]
    if not runs:
        raise RunError("no seed folders given", "name them with --seed_dirs")
    seeds = [run.seed if run.seed is not None else run.folder.name for run in runs]
    twice = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise DataError(f"seed {twice[0]} comes twice", "give one folder per seed")
    return runs


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and (any(folder.glob("results_*")) or (folder / "recipe.yaml").is_file())


def _sets_of(runs: Sequence[Run], mode: str) -> list[str]:
    plain = [r.set for run in runs for r in run.results if (r.mode, r.ablate, r.part) == (mode, None, "")]
    return list(dict.fromkeys(plain))


def _over_seeds(runs: Sequence[Run], name: str, mode: str) -> dict[str, Any]:
    results = [(run.seed, run.result(name, mode)) for run in runs]
    found = {seed: result for seed, result in results if result is not None}
    some = list(found.values())
    for other in some[1:]:
        same_items(some[0], other)
        _same_way(some[0], other)
    accuracies = [result.accuracy for result in some]
    passes = [result.passes_mean for result in some if result.passes_mean is not None]
    return {
        "accuracy_mean": fmean(accuracies) if some else None,
        "accuracy_std": stdev(accuracies) if len(some) > 1 else None,
        "forward_passes_mean": fmean(passes) if passes else None,
        "forward_passes_std": stdev(passes) if len(passes) > 1 else None,
        "num_seeds": len(some),
        "missing": [seed for seed, result in results if result is None],
        "total": some[0].total if some else None,
        "data_sha256": some[0].sha256 if some else None,
        **({key: some[0].fields[key] for key in SAME if key in some[0].fields} if some else {}),
        "per_seed": {seed: _row(result) for seed, result in found.items()},
    }


def _row(result: RunResult) -> dict[str, Any]:
    numbers = {"accuracy": result.accuracy, "correct": result.correct, "total": result.total}
    return numbers | {"forward_passes": result.passes_mean}


def _same_way(first: RunResult, second: RunResult) -> None:
    for key in SAME:
        if first.fields.get(key) != second.fields.get(key):
            raise DataError(
                f"{first.path} has {key} {first.fields.get(key)!r}, {second.path} has {second.fields.get(key)!r}",
                "evaluate one of them again, the same way",
            )


def _same_settings(runs: Sequence[Run]) -> None:
    """Seeds of one recipe differ in the seed alone."""
    known = [(run, learnt(run.recipe)) for run in runs if run.recipe]
    for run, settings in known[1:]:
        keys = [key for key in settings if settings[key] != known[0][1].get(key)]
        if keys:
            raise DataError(
                f"{run.folder} was trained with other settings than {known[0][0].folder}: {', '.join(keys[:3])}",
                "aggregate seeds of one recipe",
            )


def _config_name(runs: Sequence[Run]) -> str:
    """The recipe's name, or that of the folder the seeds lie in."""
    for run in runs:
        if name := run.recipe.get("about", {}).get("name"):
            return str(name)
    return runs[0].member
