"""kava task: what job scripts start. Runs commands, writes how they went, passes a scheduler's signals on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def task(
    command: Annotated[list[str], typer.Argument(help="behind --: the command; --then separates several")],
    status: Annotated[Path, typer.Option(help="the JSON file that says how it went")],
    scheduler: Annotated[str, typer.Option(help="whose job this is")] = "local",
    needs: Annotated[
        list[str] | None, typer.Option(help="status files that must say ok; status-x-[0-2].json names three")
    ] = None,
    requeue: Annotated[bool, typer.Option("--requeue", help="stopped by a warning: back into the queue")] = False,
    keep_going: Annotated[bool, typer.Option("--keep_going", help="a command that fails stops no later one")] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="seconds; then it is stopped as by the scheduler's warning")
    ] = None,
) -> int:
    """Run commands for a scheduler. Their exit code is ours; 3 (Grid Engine: 100) if something they need is not ok."""
    from kava.cluster.schedulers import scheduler_named
    from kava.cluster.task import Task, split

    work = Task(status, split(command), scheduler_named(scheduler), needs or [], requeue, keep_going, stop_after)
    return work.run()
