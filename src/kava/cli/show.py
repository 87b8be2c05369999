"""kava show: one run, its state, learning curve and results, in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.cli.student import Quiet
from kava.console import WIDTH, fitted, terminal_width
from kava.lab.run_overview import run_document, show_text, the_run


def show(
    run: Annotated[Path, typer.Argument(help="a run's folder, or a checkpoint in it")],
    quiet: Quiet = False,
) -> int:
    """One training run: state, recipe, model, data, learning curve, best validation, results, files, next commands."""
    folder = the_run(run)
    text = "" if quiet else fitted(show_text(folder, terminal_width() or WIDTH))
    show_result(run_document(folder) if quiet else {}, text, quiet, coloured=True)
    return 0
