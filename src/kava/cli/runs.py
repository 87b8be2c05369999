"""kava runs: every run under a folder, in a table."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.cli.student import Quiet
from kava.console import terminal_width
from kava.lab.run_overview import runs_table
from kava.lab.run_state import find_run_folders, read_state


def runs(
    folder: Annotated[Path, typer.Argument(help="the folder of your runs")] = Path("outputs"),
    quiet: Quiet = False,
) -> int:
    """Every training run under a folder: recipe, seed, state, update, loss, best validation, last change.

    States: not started, running, interrupted, finished; broken, with the reason below the table. Runs of both lines.
    """
    states = [read_state(run) for run in find_run_folders(folder)]
    text = runs_table(states, folder, terminal_width()) if states else f"no runs under {folder}"
    show_result([state.to_dict() for state in states], text, quiet)
    return 0
