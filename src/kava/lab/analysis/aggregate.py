"""Mean and sample standard deviation over the seeds of one recipe; a seed without a result stays missing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kava.config.text import dump_yaml
from kava.errors import DataError, RunError
from kava.files import write_json, write_text
from kava.lab.analysis.runs import PROTOCOL, Run, read_run, refuse_incomparable, run_name
from kava.lab.analysis.study import Score, label_of, plain, result_of, split_part
from kava.lab.analysis.validations import held_out_numbers, over_seeds
from kava.provenance import versions
from kava.text_table import number, percent, table

MEANING = (
    "accuracies are fractions of all items; *_std is the sample standard deviation over seeds (null for one seed); "
    "forward_passes_* are over each seed's mean per question; missing seeds enter nothing"
)
REHEARSAL = "a rehearsal: a few items, and with --quick_test a few updates; no result"


def aggregate(
    seed_dirs: Sequence[Path],
    datasets: Sequence[str],
    model_name: str | None = None,
    mode: str | None = None,
    config: str | None = None,
    rehearsal: bool = False,
) -> dict[str, Any]:
    """{config: {num_seeds, datasets: {set: {accuracy_mean, ...}}}} as the reproduction guide shows it, with its units and
    sources. Without `datasets`: every set for which some seed has results. Without `mode`: the mode that was trained.

    Results on a part of a set stand under a name of their own (gsm8k.limit16), never beside those on the whole set: they
    are taken for a `rehearsal`, or where there is nothing else. A document of such results has `rehearsal: true`."""
    runs = _one_run_each(seed_dirs)
    mode = mode or ("cot" if any(run.explicit for run in runs) else "latent")
    evaluated = _evaluated(runs, mode)
    sets = _sets(evaluated, datasets, mode, rehearsal)
    recipe = next((run.recipe for run in runs if run.recipe), {})
    _refuse_other_settings(runs)
    body = {
        "model_name": model_name or recipe.get("model", {}).get("name"),
        "model": recipe.get("model", {}).get("name"),
        "dataset": recipe.get("dataset", {}).get("name"),
        **({"rehearsal": True} if rehearsal or any(evaluated.get(name) for name in sets) else {}),
        "num_seeds": len(runs),
        "seeds": [_seed(run) for run in runs],
        "datasets": {name: _over_seeds(runs, name, mode) for name in sets},
        "unit": "fraction",
        "meaning": MEANING,
        "versions": versions(),
    }
    if held_out := over_seeds([held_out_numbers(run.log()) for run in runs]):
        body["held_out"] = held_out
    names = [name for run in runs if (name := run.recipe.get("about", {}).get("name"))]
    return {config or str(next(iter(names), runs[0].member)): body}


def write(document: dict[str, Any], as_json: Path | None, as_yaml: Path | None) -> None:
    if as_json is not None:
        write_json(as_json, document)
    if as_yaml is not None:
        write_text(as_yaml, dump_yaml(document))


def _evaluated(runs: Sequence[Run], mode: str) -> dict[str, str]:
    """Sets with results of the unchanged checkpoints, by the names of results -> the part they are on; "" = all of it."""
    results = [result for run in runs for result in plain(run) if result.mode == mode]
    return {label_of(result): split_part(result.part)[0] for result in results}


def _sets(evaluated: Mapping[str, str], wanted: Sequence[str], mode: str, rehearsal: bool) -> list[str]:
    """The sets to aggregate, by the names of their results."""
    whole = [name for name, part in evaluated.items() if not part]
    if rehearsal:  # the part of each set that --quick_test asks; a set smaller than that is asked whole
        limited = {name.removesuffix(part): name for name, part in evaluated.items() if ".limit" in part}
        names = [limited.get(name, name) for name in wanted or dict.fromkeys([*limited, *whole])]
    else:
        names = list(dict.fromkeys(wanted)) or whole or list(evaluated)
    if not names:
        problem = "no seed has any results" + (f" (mode {mode})" if mode != "latent" else "")
        raise RunError(problem, "run kava evaluate on each seed's best_checkpoint first")
    if not set(names) & set(evaluated):
        problem, hint = (
            f"no seed has results of {', '.join(names)} (mode {mode})",
            "run kava evaluate on each best_checkpoint",
        )
        if evaluated:
            hint = f"results there are: {', '.join(evaluated)}"
        raise RunError(problem, hint)
    return names


def seed_folders(words: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The seeds' folders among the words of a command line, as `seed_*` fills it in; and what is to be said of the rest.

    `seed_42.out`, which kava writes beside a run, stands for that run.
    """
    folders: dict[Path, Path] = {}  # where it really is -> as it was written
    notes = []
    for word in words:
        if word.suffix == ".out" and word.is_file():
            folders.setdefault(word.with_suffix("").resolve(), word.with_suffix(""))
        elif word.is_file():
            notes.append(f"{word} is a file, not a run's folder: left out")
        elif not word.exists() and any(c in word.name for c in "*?["):
            raise RunError(f"no folder matches {word}", "name the runs of one recipe, one folder per seed")
        elif word.is_dir() and run_name(word)[1] is None and read_run(word, os.listdir(word)) is None:
            notes.append(f"{word} holds no run: left out")
        elif word.resolve() in folders:
            notes.append(f"{word} is named twice: it counts once")
        else:
            folders[word.resolve()] = word
    return list(folders.values()), notes


def missing(document: dict[str, Any]) -> list[str]:
    """A line for each set for which some seed has no results."""
    (body,) = document.values()
    return [
        f"{name}: no results of seed {', '.join(map(str, entry['missing']))}"
        for name, entry in body["datasets"].items()
        if entry["missing"]
    ]


def title(document: dict[str, Any]) -> str:
    """The config's name, marked where the numbers are a rehearsal's."""
    ((config, body),) = document.items()
    return config + (f" ({REHEARSAL})" if body.get("rehearsal") else "")


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
    seeds = [_seed(run) for run in runs]
    twice = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise DataError(f"seed {twice[0]} comes twice", "give one folder per seed")
    return runs


def _seed(run: Run) -> int | str:
    """The run's seed; its folder's name where neither that nor a recipe tells it."""
    return run.folder.name if run.seed is None else run.seed


def _over_seeds(runs: Sequence[Run], name: str, mode: str) -> dict[str, Any]:
    score = Score(tuple((run, result) for run in runs if (result := result_of(run, name, mode)) is not None))
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
        "missing": [_seed(run) for run in runs if result_of(run, name, mode) is None],
        "total": first.total if first else None,
        "data_sha256": first.sha256 if first else None,
        **({key: first.fields[key] for key in PROTOCOL if key in first.fields} if first else {}),
        "per_seed": {
            _seed(run): {
                "accuracy": r.accuracy,
                "correct": r.correct,
                "total": r.total,
                "forward_passes": r.passes_mean,
            }
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
