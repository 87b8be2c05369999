"""kava train: train a student as a recipe says."""

from typing import Annotated

import typer

from kava.cli.common import OVERRIDES, parse_recipe_args, show_result
from kava.cli.student import TrustRemoteCode
from kava.outputs import as_path
from kava.progress import loading_libraries

CONTEXT = OVERRIDES
QUICK = (
    "dataset.subset_size=32",
    "system.num_workers=0",
    "training.max_steps=4",
    "training.batch_size=4",
    "training.gradient_accumulation_steps=1",
    "logging.logging_steps=1",
    "logging.eval_steps=4",
    "logging.save_steps=2",
    "evaluation.validation_size=8",
    "evaluation.max_new_tokens=24",
)


def train(
    ctx: typer.Context,
    config: Annotated[str, typer.Option(help="a shipped recipe's name (kava config --list) or a YAML file")],
    output_dir: Annotated[
        str | None, typer.Option(help="the run's folder; default outputs/<recipe>_seed_<seed>")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="short for system.seed=N")] = None,
    use_wandb: Annotated[bool, typer.Option("--use_wandb", "--wandb", help="also report to Weights & Biases")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="four updates on 32 examples: does it run?")] = False,
    resume: Annotated[
        str | None, typer.Option(help="auto: continue the folder's newest whole checkpoint; or a checkpoint folder")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only warnings, and one JSON line at the end")] = False,
) -> int:
    """Train a student. Any setting of the recipe can follow: training.batch_size=64 or --loss.alpha2_kv 2.

    The folder holds recipe.yaml, meta.json, data_card.json, train.log, log.jsonl, logs/ (TensorBoard), checkpoint-epN,
    checkpoint-stepN and best_checkpoint/, the student with the best accuracy of generated answers on the validation set
    (explicit line: with the lowest cross-entropy).
    Ctrl-C and SIGTERM save a checkpoint first; --resume auto then continues to the same bits.
    """
    keys = {word.partition("=")[0].removeprefix("--") for word in ctx.args}
    if "system.gradient_accumulation_steps" in keys:  # the same key in its other place
        keys.add("training.gradient_accumulation_steps")
    settings = [setting for setting in QUICK if quick_test and setting.partition("=")[0] not in keys]
    if seed is not None:
        settings.append(f"system.seed={seed}")
    recipe = parse_recipe_args(config, ctx, *settings)
    if use_wandb and "wandb" not in recipe.logging.report_to:
        trackers = ", ".join([*recipe.logging.report_to, "wandb"])
        recipe = parse_recipe_args(config, ctx, *settings, f"logging.report_to=[{trackers}]")

    with loading_libraries():
        from kava.training.folder import default_folder
        from kava.training.processes import is_main_process
        from kava.training.run import train as run

    folder = as_path("--output_dir", output_dir) or default_folder(recipe, "_quick" if quick_test else "")
    result = run(recipe, folder, resume, quiet)
    if quiet and is_main_process():
        show_result(result.facts, "", quiet)
    return result.exit_code
