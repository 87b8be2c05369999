"""Mean and sample standard deviation over the seeds of one recipe; a seed without a result stays missing."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kava.config.text import dump_yaml
from kava.errors import DataError, RunError
from kava.files import write_json, write_text
from kava.lab.analysis.runs import PROTOCOL, Run, read_run, refuse_incomparable, run_name
from kava.lab.analysis.study import Score
from kava.lab.analysis.validations import held_out_numbers, over_seeds
from kava.provenance import versions
from kava.text_table import number, percent, table

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
    """{config: {num_seeds, datasets: {set: {accuracy_mean, ...}}}} as the reproduction guide shows it, with its units and
    sources. Without `datasets`: every set for which some seed has results. Without `mode`: the mode that was trained."""
    runs = _one_run_each(seed_dirs)
    mode = mode or ("cot" if any(run.explicit for run in runs) else "latent")
    evaluated = [result.set for run in runs for result in run.results if result.unchanged and result.mode == mode]
    sets = list(dict.fromkeys(datasets or evaluated))
    if not sets:
        raise RunError("no seed has any results", "run kava evaluate on each seed's best_checkpoint first")
    recipe = next((run.recipe for run in runs if run.recipe), {})
    _refuse_other_settings(runs)
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
    if not set(sets) & set(evaluated):
        raise RunError(
            f"no seed has results of {', '.join(sets)} (mode {mode})", "run kava evaluate on each best_checkpoint first"
        )
    names = [name for run in runs if (name := run.recipe.get("about", {}).get("name"))]
    return {config or str(next(iter(names), runs[0].member)): body}


def write(document: dict[str, Any], as_json: Path | None, as_yaml: Path | None) -> None:
    if as_json is not None:
        write_json(as_json, document)
    if as_yaml is not None:
        write_text(as_yaml, dump_yaml(document))


def missing(document: dict[str, Any]) -> list[str]:
    """A line for each set for which some seed has no results."""
    (body,) = document.values()
    return [
        f"{name}: no results of seed {', '.join(map(str, entry['missing']))}"
        for name, entry in body["datasets"].items()
        if entry["missing"]
    ]


def accuracy_table(document: dict[str, Any]) -> str:
    """Accuracy, spread and forward passes for the console, a row per set."""
    (body,) = document.values()
    rows = []
    for name, entry in body["datasets"].items():
        mean = percent(entry["accuracy_mean"]) + ("" if entry["accuracy_mean"] is None else " %")
        each = " ".join(percent(seed["accuracy"]) for seed in entry["per_seed"].values())
        seeds, passes = f"{entry['num_seeds']} of {body['num_seeds']}", number(entry["forward_passes_mean"])
        rows.append((name, seeds, mean, percent(entry["accuracy_std"]), passes, each))
    return table(rows, ("set", "seeds", "accuracy", "sd", "passes", "per seed, %"))


def held_out_table(document: dict[str, Any]) -> str:
    """Mean and spread of the last validation, a row per number; "" for a recipe without a mixture of teachers."""
    (body,) = document.values()
    rows = [
        (name, str(entry["num_seeds"]), f"{entry['mean']:.4g}", "-" if entry["std"] is None else f"{entry['std']:.2g}")
        for name, entry in body.get("held_out", {}).items()
    ]
    return table(rows, ("number", "seeds", "mean", "sd")) if rows else ""


def _one_run_each(seed_dirs: Sequence[Path]) -> list[Run]:
    """The run of every folder; a folder that does not exist, or is empty, is a seed without results."""
    runs = [
        (read_run(folder, os.listdir(folder)) if folder.is_dir() else None) or Run(folder, *run_name(folder), "missing")
        for folder in dict.fromkeys(seed_dirs)
    ]
    if not runs:
        raise RunError("no seed folders given", "name them with --seed_dirs")
    seeds = [run.seed if run.seed is not None else run.folder.name for run in runs]
    twice = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise DataError(f"seed {twice[0]} comes twice", "give one folder per seed")
    return runs


def _over_seeds(runs: Sequence[Run], name: str, mode: str) -> dict[str, Any]:
    score = Score(tuple((run, result) for run in runs if (result := run.result(name, mode)) is not None))
    results = [result for _, result in score.results]
    refuse_incomparable(results)
    passes = [result.passes_mean for result in results if result.passes_mean is not None]
    first = results[0] if results else None
    return {
        "accuracy_mean": score.mean,
        "accuracy_std": score.sd,
        "forward_passes_mean": fmean(passes) if passes else None,
        "forward_passes_std": stdev(passes) if len(passes) > 1 else None,
        "num_seeds": len(results),
        "missing": [run.seed for run in runs if run.result(name, mode) is None],
        "total": first.total if first else None,
        "data_sha256": first.sha256 if first else None,
        **({key: first.fields[key] for key in PROTOCOL if key in first.fields} if first else {}),
        "per_seed": {
            run.seed: {"accuracy": r.accuracy, "correct": r.correct, "total": r.total, "forward_passes": r.passes_mean}
            for run, r in score.results
        },
    }


def _refuse_other_settings(runs: Sequence[Run]) -> None:
    """Seeds of one recipe differ in the seed alone."""
    first, *others = [run for run in runs if run.recipe] or runs
    for run in others:
        keys = [key for key, value in run.trained_settings.items() if value != first.trained_settings.get(key)]
        if keys:
            differ = f"{run.folder} was trained with other settings than {first.folder}: {', '.join(keys[:3])}"
            raise DataError(differ, "aggregate seeds of one recipe")
