"""kava evaluate: accuracy and forward passes of a trained student."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import (
    Base,
    BatchSize,
    Checkpoint,
    Device,
    ExactAdapters,
    MaxNewTokens,
    Quiet,
    Revision,
    TrustRemoteCode,
)
from kava.console import fitted, visible
from kava.progress import loading_libraries

QUICK_LIMIT = 16


def evaluate(
    checkpoint: Checkpoint,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--eval_dataset",
            "--dataset",
            "--datasets",
            help="gsm8k, gsm8k-hard, svamp, a built-in set (chains), or a path; several allowed; default: the recipe's",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="a .yaml or .json file, or a folder; default: beside best_checkpoint")
    ] = None,
    mode: Annotated[
        Literal["latent", "cot", "direct"] | None,
        typer.Option(help="think in latents, write the steps, or neither; default: latent, or cot (explicit line)"),
    ] = None,
    ablate: Annotated[
        Literal["zero", "mean", "swap", "noise"] | None,
        typer.Option(help="put these in place of the latents: does the answer depend on them?"),
    ] = None,
    num_tokens: Annotated[int | None, typer.Option(min=0, max=4096, help="think in so many latents (M)")] = None,
    num_iterations: Annotated[int | None, typer.Option(min=0, max=4096, help="think for so many rounds (T)")] = None,
    cue: Annotated[
        Literal["given", "generated"] | None, typer.Option(help="give the cue, or let the model write it")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=1024, help="draw so many answers to each item: pass@k, majority vote")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="of drawn answers; default: the recipe's")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw among the likeliest tokens of this share")] = None,
    sampling_seed: Annotated[int | None, typer.Option(min=0, help="of the draws; default: the recipe's seed")] = None,
    losses: Annotated[
        bool, typer.Option("--losses", help="also the held-out loss terms, and the distance to what compressors keep")
    ] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="leave out sets that have results of this very checkpoint")
    ] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help=f"{QUICK_LIMIT} items: does it run?")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="so many items, always the same ones")] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="built-in sets: problems of exactly this length")] = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    base: Base = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    exact_adapters: ExactAdapters = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Accuracy and forward passes of a trained student on test sets.

    Writes results_<set>[.<mode>].yaml and predictions_<set>[.<mode>].jsonl; .ablate_<kind>, .M<n>, .T<n>, .cue_<how>,
    .samples<n>, .temp<t>, .topp<p> and .seed<n> are added where the student is changed. With --samples an item is right if
    the number that most of its answers have is. Accuracies are fractions of all items; correct is the number right after
    the cue; a set that cannot be loaded is an error before anything is generated.
    """
    options = {name: value for name, value in locals().items() if name not in ("checkpoint", "quick_test")}
    if quick_test and limit is None:
        options["limit"] = QUICK_LIMIT

    with loading_libraries():
        from kava.evaluation.result_files import line
        from kava.evaluation.run import EvalResult
        from kava.evaluation.run import evaluate as run

    def report(result: EvalResult) -> None:
        text = f"{line(result.fields)}\n  wrote {result.results} and {result.predictions.name}"
        print(fitted(visible(text)), flush=True)

    results = run(checkpoint, **options, report=None if quiet else report)
    if quiet or not results:
        nothing = "nothing to do: every set has results of this checkpoint"
        show_result([result.to_dict() for result in results], nothing, quiet)
    return 0
