"""kava task: started by job scripts. Runs commands, records how they ended, passes the scheduler's signals on."""

from pathlib import Path
from typing import Annotated

import typer


def task(
    command: Annotated[list[str], typer.Argument(help="after --: the command; --then separates several")],
    status: Annotated[Path, typer.Option(help="JSON file that records how it ended")],
    scheduler: Annotated[str, typer.Option(help="name of the scheduler that started the job")] = "local",
    needs: Annotated[
        list[str] | None, typer.Option(help="status files that must say ok; status-x-[0-2].json names three")
    ] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="stopped by the scheduler's warning: requeue the job")
    ] = False,
    keep_going: Annotated[bool, typer.Option("--keep_going", help="run later commands even if one fails")] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="after so many seconds act as if the scheduler had warned")
    ] = None,
) -> int:
    """Run commands for a scheduler; exit with their exit code, or 3 (Grid Engine: 100) if something they need is not ok."""
    from kava.cluster.schedulers import scheduler_named
    from kava.cluster.task import Task, split

    work = Task(status, split(command), scheduler_named(scheduler), needs or [], requeue, keep_going, stop_after)
    return work.run()
