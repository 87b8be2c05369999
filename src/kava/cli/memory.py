"""kava memory: how much memory a run will take, before it is started."""

from typing import Annotated, Literal

import typer

from kava.cli.common import OVERRIDES, parse_recipe_args, show_result
from kava.cli.student import Quiet, TrustRemoteCode
from kava.errors import ConfigError
from kava.progress import loading_libraries

CONTEXT = OVERRIDES


def memory(
    ctx: typer.Context,
    config: Annotated[str, typer.Option(help="a shipped recipe's name (kava config --list) or a YAML file")],
    gpus: Annotated[int, typer.Option(min=1, max=1_000_000, help="processes, each with a GPU")] = 1,
    sharding: Annotated[
        Literal["auto", "none", "fsdp2", "fsdp2_whole"] | None, typer.Option(help="short for system.sharding=...")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="short for training.batch_size=N")] = None,
    question: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="tokens of a question")] = None,
    cot: Annotated[int | None, typer.Option(min=0, max=1_000_000, help="tokens of a chain of thought")] = None,
    answer: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="tokens of an answer")] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> int:
    """Weights, gradients, optimizer, activations, logits, teacher and store at the peak, on each process.

    One update of the recipe runs without numbers: sizes are those of its own code, and no weights are read. The batch is
    that of the longest training examples, or of the lengths given.
    """
    lengths = (question, cot, answer)
    if any(length is not None for length in lengths) and None in lengths:
        raise ConfigError("lengths come together", "give --question, --cot and --answer, or none of them")
    flags = (
        None if sharding is None else f"system.sharding={sharding}",
        None if batch_size is None else f"training.batch_size={batch_size}",
    )
    recipe = parse_recipe_args(config, ctx, *flags)
    with loading_libraries():
        from kava.backbone.silence_libraries import silence_libraries
        from kava.lab.memory.report import memory_report, memory_text

    silence_libraries()
    report = memory_report(recipe, None if question is None else [length or 0 for length in lengths], gpus)
    show_result(report, memory_text(report), quiet)
    return 0
