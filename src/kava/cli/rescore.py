"""kava rescore: score saved predictions again, without the model."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.cli.student import Quiet


def rescore(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="predictions_<set>.jsonl of evaluations")],
    output_dir: Annotated[
        Path | None, typer.Option(help="write both files of each evaluation here and keep the old ones")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Score saved answers again with the current answer parser.

    Rewrites each predictions file and its results file: counts are recomputed from the raw texts, all other fields stay,
    `rescored: true` is added. Nothing is written unless every file can be read.
    """
    from kava.evaluation.rescore import rescore as score_again
    from kava.evaluation.result_files import Files, check_writable, write

    rescored = [score_again(path) for path in dict.fromkeys(files)]
    targets = [
        Files(folder / old.results.name, folder / old.predictions.name)
        for old in (result.files for result in rescored)
        for folder in [output_dir or old.predictions.parent]
    ]
    check_writable(targets)
    rows, lines = [], []
    for result, target in zip(rescored, targets, strict=True):
        write(target, result.results, result.predictions)
        accuracy, total = result.results["accuracy"], result.results["total"]
        facts = {"before": result.before, "accuracy": accuracy, "changed": result.changed}
        rows.append({"predictions": str(target.predictions), "results": str(target.results), **facts})
        lines.append(
            f"{target.results}: {100 * result.before:.1f} % -> {100 * accuracy:.1f} % correct "
            f"({result.changed} of {total} items judged otherwise)"
        )
    show_result(rows, "\n".join(lines), quiet)
    return 0
