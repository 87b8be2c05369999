"""kava seeds: a recipe over several seeds, from training to the aggregated table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import OVERRIDES, caller_trusts, check_flags, show_result
from kava.cli.student import TrustRemoteCode
from kava.config import load_recipe
from kava.config.trust import FLAG
from kava.console import tell
from kava.errors import ConfigError, RunError
from kava.lab.analysis.aggregate import accuracy_table, aggregate, missing, title, write
from kava.lab.plan import SEEDS, RunSet, plan_seeds
from kava.lab.run_local import run_jobs
from kava.outputs import Output, check_folder, check_outputs

CONTEXT = OVERRIDES


def seeds(
    ctx: typer.Context,
    config: Annotated[str, typer.Option(help="a shipped recipe's name or a YAML file")],
    seeds: Annotated[list[int] | None, typer.Option(help="default: 42 123 456")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="default outputs/<recipe>_multi_seed; with --quick_test ..._multi_seed_quick")
    ] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="default: the recipe's evaluation.datasets")] = None,
    model_name: Annotated[str | None, typer.Option(help="the model's name in tables")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="seeds at once; with several CUDA_VISIBLE_DEVICES, one each")] = 1,
    skip_train: Annotated[
        bool, typer.Option("--skip_train", "--skip_training", help="evaluate and aggregate existing runs")
    ] = False,
    skip_eval: Annotated[
        bool, typer.Option("--skip_eval", "--skip_evaluation", help="train (and aggregate what was evaluated)")
    ] = False,
    use_wandb: Annotated[bool, typer.Option("--use_wandb", "--wandb", help="also report to Weights & Biases")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="a few updates and items: does it run?")] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the aggregated result, as JSON")] = False,
) -> int:
    """Train every seed, evaluate its best checkpoint on every set, and aggregate.

    Writes <output_dir>/seed_N/ with results_<set>.yaml, and aggregated_results.json and .yaml beside them. Started
    again it keeps finished runs and continues interrupted ones. A seed that fails stops no other; it is
    missing from the table and the exit code is 1. A --quick_test is a rehearsal, to the table, which says so.
    Settings may follow: training.batch_size=64.
    """
    runs = seed_runs(ctx)
    root = output_dir or Path("outputs") / f"{runs.recipe.about.name}_multi_seed{'_quick' if quick_test else ''}"
    folders = [root / f"seed_{seed}" for seed in runs.seeds]
    check_folder("--output_dir", root)
    targets = [root / f"aggregated_results.{ending}" for ending in ("json", "yaml")]
    check_outputs([Output("the aggregate", path) for path in targets])
    before = _written(folders)
    broken = run_jobs(plan_seeds(runs, root), jobs, quiet)
    for label, reason in broken.items():
        tell(f"error: {label}: {reason} (whole output: {root / label}.out)")
    if not any(path for folder in folders for path in folder.glob("results_*")):
        if not broken and (skip_train or not skip_eval):
            raise RunError(f"no seed under {root} has results", "leave --skip_train or --skip_eval out")
        if not quiet:
            print(f"{len(folders) - len(broken)} of {len(folders)} seeds went well; nothing is evaluated yet")
        return 1 if broken else 0
    if not quiet and not broken and before == _written(folders):
        print("nothing to do: every seed is trained and evaluated\n")
    result = aggregate(folders, short_names(runs.sets), model_name, config=runs.recipe.about.name, rehearsal=quick_test)
    write(result, *targets)
    absent = missing(result)
    for line in absent:
        tell(f"warning: {line}")
    text = f"{title(result)}\n{accuracy_table(result)}\n\nwrote {root / 'aggregated_results.json'} and .yaml"
    show_result(result, text, quiet)
    return 1 if broken or (absent and not skip_eval) else 0


def _written(folders: Sequence[Path]) -> dict[Path, int]:
    """When the logs and results of the runs were last written."""
    files = [path for folder in folders for name in ("log.jsonl", "results_*") for path in folder.glob(name)]
    return {path: path.stat().st_mtime_ns for path in files}


def runs_of(ctx: typer.Context) -> RunSet:
    """What the flags of `kava seeds` or `kava suite` say about all runs."""
    settings, flags = check_flags(ctx), ctx.params
    recipe = caller_trusts(load_recipe(flags["config"], settings), ctx)
    wanted = flags["seeds"] or SEEDS
    seeds = list(dict.fromkeys(wanted))
    for seed in (seed for seed in seeds if wanted.count(seed) > 1):
        tell(f"note: --seeds names {seed} more than once: it is run once")
    switches = {name: flags.get(name, False) for name in ("quick_test", "use_wandb", "skip_train", "skip_eval", FLAG)}
    return RunSet(recipe, flags["config"], settings, seeds, flags["datasets"] or [], **switches)


def seed_runs(ctx: typer.Context) -> RunSet:
    """The same for `kava seeds`, where no setting may name the seed."""
    runs = runs_of(ctx)
    if any("system.seed" in word.replace("-", "_") for word in runs.settings):
        raise ConfigError("system.seed is set by --seeds", "leave it out")
    return runs


def short_names(sets: list[str]) -> list[str]:
    """The names that results have: gsm8k for openai/gsm8k."""
    from kava.evaluation.eval_sets import short_name

    return [short_name(name) for name in sets]
