"""kava rescore: judge saved predictions again, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.cli.student import Quiet


def rescore(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="predictions_<set>.jsonl of evaluations")],
    output_dir: Annotated[
        Path | None, typer.Option(help="write both files of each evaluation here and leave the old ones alone")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Judge saved answers again with today's reader of answers.

    Rewrites each predictions file and the results file beside it: the counts are made again from the raw texts, all
    other fields stay, `rescored: true` is added. Nothing is written unless every file can be read.
    """
    from kava.evaluation.rescore import rescore as judge
    from kava.evaluation.result_files import Files, check_writable, write

    found = [judge(path) for path in dict.fromkeys(files)]
    folders = [one.files.predictions.parent if output_dir is None else output_dir for one in found]
    targets = [
        Files(folder / one.files.results.name, folder / one.files.predictions.name)
        for folder, one in zip(folders, found, strict=True)
    ]
    check_writable(targets)
    rows = []
    for one, target in zip(found, targets, strict=True):
        write(target, one.results, one.predictions)
        facts = {"before": one.before, "accuracy": one.results["accuracy"], "changed": one.changed}
        rows.append({"predictions": str(target.predictions), "results": str(target.results), **facts})
    lines = [
        f"{row['results']}: {100 * row['before']:.1f} % -> {100 * row['accuracy']:.1f} % correct "
        f"({row['changed']} of {one.results['total']} items judged otherwise)"
        for row, one in zip(rows, found, strict=True)
    ]
    show_result(rows, "\n".join(lines), quiet)
    return 0
