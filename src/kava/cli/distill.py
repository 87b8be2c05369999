"""kava distill: a student that learns from a separate teacher's keys and values. The guides' training scripts."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kava.cli.common import OVERRIDES, show_result
from kava.cli.distill_flags import read_words
from kava.cli.distill_settings import ADAPTIVE, Wish, settle
from kava.cli.distill_table import GROUPS
from kava.cli.distill_teachers import recipe_for
from kava.config import Recipe


class DistillCommand(TyperCommand):
    """Its help lists the table of flags behind the declared ones."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        for group, flags in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (
                            ", ".join(f"--{name}" for name in flag.names.split())
                            + ("" if flag.switch else " V ..." if flag.many else " V"),
                            flag.help,
                        )
                        for flag in flags
                    ]
                )


def distill(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            help="adaptive (the machine decides what is not given; the default), explicit_hpc, or a YAML file; with "
            "--phase N, --teacher_models or --teacher_prompts the default is phaseN, phase3 or phase1"
        ),
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="the run's folder; default <output path>/<recipe>_seed_<seed>")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="short for system.seed=N")] = None,
    use_wandb: Annotated[bool, typer.Option("--use_wandb", "--wandb", help="also report to Weights & Biases")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="four updates on 32 examples: does it run?")] = False,
    resume: Annotated[
        str | None, typer.Option(help="auto: continue the folder's newest whole checkpoint; or a checkpoint folder")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="only warnings, and one JSON line at the end")] = False,
) -> int:
    """Train a student on the keys and values of a separate teacher, or of several: all read the same text.

    Needs no argument. Every setting of the recipe can follow as section.key=value, and the flags of the guides'
    train_with_kv.py, train_adaptive.py and train_multi_teacher_kv.py are known (below; underscores or dashes). Steps are
    optimiser updates.

    Beside what kava train writes, the folder holds training_log.txt, TRAINING_COMPLETED.txt and final_model/; Ctrl-C
    writes emergency_checkpoint/ and --resume auto continues.
    """
    made = settle(wish_of(ctx), _probe)
    if not quiet and os.environ.get("RANK", "0") == "0":
        print(made.line, flush=True)

    from kava.training.processes import is_main_process
    from kava.training.run import train

    outcome = train(made.recipe, made.folder, resume, quiet)
    if quiet and is_main_process():
        show_result(outcome.facts, "", quiet)
    return outcome.exit_code


def wish_of(ctx: Any) -> Wish:
    """What a command line asks for, from its parsed words."""
    own = ctx.params
    declared = [name for parameter in ctx.command.params for name in parameter.opts]
    seed = [] if own["seed"] is None else [f"system.seed={own['seed']}"]
    asked = read_words([*ctx.args, *seed], declared)
    config = own["config"] or recipe_for(asked.given) or ADAPTIVE
    return Wish(asked, config, own["output_dir"], own["resume"], own["quick_test"], own["use_wandb"])


def _probe(recipe: Recipe) -> int:
    from kava.training.probe import measured_batch

    return measured_batch(recipe)


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("distill", cls=DistillCommand, context_settings={"help_option_names": ["--help", "-h"], **OVERRIDES})(
    distill
)
