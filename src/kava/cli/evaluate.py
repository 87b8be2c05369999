"""kava evaluate: accuracy and forward passes of a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import show_result
from kava.cli.list_flags import app_of
from kava.cli.student import Base, BatchSize, Checkpoint, Device, MaxNewTokens, Quiet, own_mode, stored_recipe
from kava.errors import ConfigError

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
    losses: Annotated[
        bool, typer.Option("--losses", help="also the held-out loss terms, and the distance to what compressors keep")
    ] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="leave out sets that this very checkpoint has results of")
    ] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help=f"{QUICK_LIMIT} items: does it run?")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="so many items, always the same ones")] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="built-in sets: problems of exactly this length")] = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    base: Base = None,
    quiet: Quiet = False,
) -> int:
    """Accuracy and forward passes of a trained student on test sets.

    Writes results_<set>[.<mode>].yaml and predictions_<set>[.<mode>].jsonl; .ablate_<kind>, .M<n>, .T<n> and .cue_<how>
    are added where the student is changed. Accuracies are fractions of all items; correct is the number right behind
    the cue; a set that cannot be loaded is an error before anything is asked.
    """
    recipe = stored_recipe(checkpoint)
    how = mode or own_mode(recipe)
    names = list(dict.fromkeys(datasets or recipe.evaluation.datasets))
    if quick_test and limit is None:
        limit = QUICK_LIMIT
    if output is not None and len(names) > 1 and output.suffix and not output.is_dir():
        raise ConfigError(f"--output {output} is one file, there are {len(names)} sets", "give --output a folder")
    if losses and (ablate is not None or how == "direct"):
        what = "--ablate" if ablate is not None else "mode direct"
        raise ConfigError(f"--losses has no effect with {what}", "they are measured with the student's own latents")

    from kava.backbone.artifact import read_card
    from kava.backbone.silence_libraries import silence_libraries
    from kava.evaluation.eval_sets import load_eval_set
    from kava.evaluation.overrides import EvalOverrides
    from kava.evaluation.result_files import check_writable, files_for, line, up_to_date
    from kava.evaluation.run import evaluate
    from kava.infer.student import Student

    changes = EvalOverrides.of(recipe, how, ablate, num_tokens, num_iterations, cue)
    silence_libraries()
    asked = [load_eval_set(recipe, name, limit, num_steps) for name in names]
    for one in asked:
        changes.check_items(one.examples, one.name)
    files = [files_for(checkpoint, one, how, output, changes) for one in asked]
    check_writable(files)
    pairs = list(zip(asked, files, strict=True))
    if missing:
        step = read_card(checkpoint).get("step")
        pairs = [
            (one, pair)
            for one, pair in pairs
            if not up_to_date(pair, {"step": step, "mode": how, "data_sha256": one.sha256}, losses)
        ]
    if not pairs:
        show_result([], "nothing to do: every set has results of this checkpoint", quiet)
        return 0
    student = Student.from_pretrained(checkpoint, device, base)
    found = []
    for one, pair in pairs:
        results = evaluate(
            student, one, pair, checkpoint, how, batch_size, max_new_tokens, changes, losses, progress=not quiet
        )
        found.append(results | {"results": str(pair.results), "predictions": str(pair.predictions)})
        if not quiet:
            print(f"{line(results)}\n  wrote {pair.results} and {pair.predictions.name}", flush=True)
    if quiet:
        show_result(found, "", quiet)
    return 0


app = app_of("evaluate", evaluate)
