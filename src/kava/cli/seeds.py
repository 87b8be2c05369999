"""kava seeds: a recipe over several seeds, from training to the aggregated table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import OVERRIDES, check_flags, parse_recipe_args, show_result
from kava.cli.list_flags import app_of
from kava.errors import ConfigError, RunError
from kava.lab.analysis.aggregate import accuracy_table, aggregate, missing, write
from kava.lab.plan import job
from kava.lab.run_local import run_jobs

CONTEXT = OVERRIDES
SEEDS = (42, 123, 456)


def seeds(
    ctx: typer.Context,
    config: Annotated[str, typer.Option(help="a shipped recipe's name or a YAML file")],
    seeds: Annotated[list[int] | None, typer.Option(help="default: 42 123 456")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="default outputs/<recipe>_multi_seed")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="default: the recipe's evaluation.datasets")] = None,
    model_name: Annotated[str | None, typer.Option(help="how tables call the model")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="seeds at once; with several CUDA_VISIBLE_DEVICES, one each")] = 1,
    skip_train: Annotated[
        bool, typer.Option("--skip_train", "--skip_training", help="evaluate and aggregate what is there")
    ] = False,
    skip_eval: Annotated[
        bool, typer.Option("--skip_eval", "--skip_evaluation", help="train (and aggregate what was evaluated)")
    ] = False,
    use_wandb: Annotated[bool, typer.Option("--use_wandb", "--wandb", help="also report to Weights & Biases")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="a few updates and items: does it run?")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the aggregated result, as JSON")] = False,
) -> int:
    """Train every seed, evaluate its best checkpoint on every set, and aggregate.

    Writes <output_dir>/seed_N/ with results_<set>.yaml, and aggregated_results.json and .yaml beside them. Started
    again it repeats nothing that is finished and continues what was cut off. A seed that fails stops no other one; it is
    missing from the table and the exit code is 1. Settings may follow: training.batch_size=64.
    """
    settings = check_flags(ctx)
    recipe = parse_recipe_args(config, settings)
    numbers = list(dict.fromkeys(seeds or SEEDS))
    if any("system.seed" in word.replace("-", "_") for word in settings):
        raise ConfigError("system.seed is set by --seeds", "leave it out")
    root = output_dir or Path("outputs") / f"{recipe.about.name}_multi_seed"
    sets = list(dict.fromkeys(datasets or recipe.evaluation.datasets))
    extra = (["--use_wandb"] if use_wandb else []) + (["--quick_test"] if quick_test else [])
    folders = {number: root / f"seed_{number}" for number in numbers}
    evaluation = ["--eval_dataset", *sets, "--missing", *(["--quick_test"] if quick_test else [])]
    planned = [
        job(f"seed_{number}", config, folder, number, settings, [evaluation], extra)
        for number, folder in folders.items()
    ]
    planned = [one.without(train=skip_train, evaluate=skip_eval) for one in planned]
    broken = run_jobs(planned, jobs, quiet)
    for label, reason in broken.items():
        print(f"error: {label}: {reason} (whole output: {root / label}.out)", file=sys.stderr)
    if not any(path for folder in folders.values() for path in folder.glob("results_*")):
        if not broken and not skip_eval:
            raise RunError(f"no seed under {root} has results", "leave --skip_train out, or evaluate first")
        if not quiet:
            print(f"{len(numbers) - len(broken)} of {len(numbers)} seeds went well; nothing is evaluated yet")
        return 1 if broken else 0
    found = aggregate(list(folders.values()), _short(sets), model_name, config=recipe.about.name)
    write(found, root / "aggregated_results.json", root / "aggregated_results.yaml")
    for line in missing(found):
        print(f"warning: {line}", file=sys.stderr)
    text = f"{accuracy_table(found)}\n\nwrote {root / 'aggregated_results.json'} and .yaml"
    show_result(found, text, quiet)
    return 1 if broken else 0


def _short(sets: list[str]) -> list[str]:
    """The names that results have: gsm8k for openai/gsm8k."""
    from kava.evaluation.eval_sets import short_name

    return [short_name(name) for name in sets]


app = app_of("seeds", seeds, **OVERRIDES)
