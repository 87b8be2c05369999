"""kava evaluate: accuracy and forward passes of a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import show_result
from kava.cli.infer import stored_recipe
from kava.cli.many import app_of
from kava.errors import ConfigError

QUICK_LIMIT = 16


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint_dir", "--checkpoint", help="a student's folder, such as a run's best_checkpoint"),
    ],
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
        Literal["latent", "cot", "direct"], typer.Option(help="think in latents, write the steps, or neither")
    ] = "latent",
    quick_test: Annotated[bool, typer.Option("--quick_test", help=f"{QUICK_LIMIT} items: does it run?")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="so many items, always the same ones")] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="built-in sets: problems of exactly this length")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer; default: the recipe's")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="questions at once; changes nothing but the time")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    base: Annotated[
        str | None, typer.Option(help="where the base model of a LoRA student is, if not where it was")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Accuracy and forward passes of a trained student on test sets.

    Writes results_<set>[.<mode>].yaml and predictions_<set>[.<mode>].jsonl. Accuracies are fractions of all items;
    correct is the number right behind the cue; a set that cannot be loaded is an error before anything is asked.
    """
    recipe = stored_recipe(checkpoint)
    names = list(dict.fromkeys(datasets or recipe.evaluation.datasets))
    if quick_test and limit is None:
        limit = QUICK_LIMIT
    if output is not None and len(names) > 1 and output.suffix and not output.is_dir():
        raise ConfigError(f"--output {output} is one file, there are {len(names)} sets", "give --output a folder")

    from kava.backbone.hush import hush
    from kava.evaluate.run import check_writable, evaluate, files_for, line
    from kava.evaluate.sets import open_asked
    from kava.infer.student import Student

    hush()
    asked = [open_asked(recipe, name, limit, num_steps) for name in names]
    files = [files_for(checkpoint, one, mode, output) for one in asked]
    check_writable(files)
    student = Student.from_pretrained(checkpoint, device, base)
    found = []
    for one, pair in zip(asked, files, strict=True):
        results = evaluate(student, one, pair, checkpoint, mode, batch_size, max_new_tokens, progress=not quiet)
        found.append(results | {"results": str(pair.results), "predictions": str(pair.predictions)})
        if not quiet:
            print(f"{line(results)}\n  wrote {pair.results} and {pair.predictions.name}", flush=True)
    if quiet:
        show_result(found, "", quiet)
    return 0


app = app_of("evaluate", evaluate)
