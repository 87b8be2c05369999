"""kava distill: a student that learns from a separate teacher's keys and values. The guides' training scripts."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kava.cli.common import OVERRIDES, show_result
from kava.cli.distill_flags import read_words
from kava.cli.distill_settings import ADAPTIVE, DistillRequest, prepared_machine, resolve
from kava.cli.distill_table import GROUPS
from kava.cli.distill_teachers import default_recipe
from kava.config import Recipe
from kava.config.trust import code_allowed, trusted
from kava.console import fitted
from kava.progress import loading_libraries, say


class DistillCommand(TyperCommand):
    """Its help lists the table of flags after the verb's own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        for group, flags in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(flag.usage, flag.help) for flag in flags])


def distill(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            help="a recipe's name (kava config --list) or a YAML file; default: adaptive, which lets this machine set "
            "what is not given; with --phase N phaseN, with --teacher_models phase3, with --teacher_prompts phase1"
        ),
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="folder of the run; default <output path>/<recipe>_seed_<seed> (see kava env)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="the same as system.seed=N")] = None,
    use_wandb: Annotated[bool, typer.Option("--use_wandb", "--wandb", help="also log to Weights & Biases")] = False,
    quick_test: Annotated[bool, typer.Option(help="a trial run: four updates on 32 training examples")] = False,
    resume: Annotated[
        str | None, typer.Option(help="auto: continue from the newest complete checkpoint of the folder; or name one")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="print warnings only, and the result as one JSON line")] = False,
) -> int:
    """Train a student on the keys and values of one separate teacher, or of several, that read the same text.

    Runs without any flag. Every setting of the recipe can follow as section.key=value. The flags of the guides'
    train_with_kv.py, train_adaptive.py and train_multi_teacher_kv.py are listed below, with underscores; dashes work too.
    Steps are optimiser updates.

    In addition to the files of kava train, the folder gets training_log.txt, TRAINING_COMPLETED.txt and final_model/.
    Ctrl-C writes emergency_checkpoint/; --resume auto continues from there.
    """
    request = request_of(ctx)
    trust = request.flags.typed.get("model.trust_remote_code") == "true"
    with loading_libraries():
        machine = prepared_machine(request)
    run = resolve(request, machine, lambda recipe: _measured_batch(recipe, trust))
    if not quiet and os.environ.get("RANK", "0") == "0":
        say(fitted(run.line, sys.stderr))

    with loading_libraries():
        from kava.training.processes import is_main_process
        from kava.training.run import train

    outcome = train(trusted(run.recipe, trust), run.folder, resume, quiet)
    if quiet and is_main_process():
        show_result(outcome.facts, "", quiet)
    return outcome.exit_code


def request_of(ctx: Any) -> DistillRequest:
    """What a parsed command line says."""
    own = ctx.params
    declared = [name for parameter in ctx.command.params for name in parameter.opts]
    seed = [] if own["seed"] is None else [f"system.seed={own['seed']}"]
    flags = read_words([*ctx.args, *seed], declared)
    config = own["config"] or default_recipe(flags.typed) or ADAPTIVE
    return DistillRequest(flags, config, own["output_dir"], own["resume"], own["quick_test"], own["use_wandb"])


def _measured_batch(recipe: Recipe, trust_remote_code: bool) -> int:
    with loading_libraries():
        from kava.training.probe import measured_batch  # after the hub's cache has been moved

    with code_allowed():
        return measured_batch(trusted(recipe, trust_remote_code))


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("distill", cls=DistillCommand, context_settings=OVERRIDES)(distill)
