"""kava jobs: states of submitted jobs, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.text_table import table


def jobs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER ...]", help="runs, or folders of runs; default: outputs")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="end what is not through")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="read the status files, ask no scheduler")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Every task of every submission: what its own status file says, else what the scheduler says.

    pending, running, ok, failed, refused (something it needed is not ok), requeued, cancelled, lost (it began, never said
    how it ended, and the scheduler does not have it any more).
    """
    import os

    from kava.cluster.jobs import cancel as end
    from kava.cluster.jobs import records, rows, summary
    from kava.errors import RunError

    where = folders or [Path(os.environ.get("KAVA_OUTPUT_PATH") or "outputs")]
    for folder in where:
        if not folder.is_dir():
            raise RunError(f"no folder {folder}", "name the folder that kava submit wrote to")
    known = records(where)
    if cancel:
        ended = [job for record in known for job in end(record)]
        show_result({"cancelled": ended}, f"cancelled: {', '.join(ended) or 'nothing was open'}", quiet)
        return 0
    found = [row for record in known for row in rows(record, ask=not offline)]
    lines = [
        [
            row.submission, row.label, row.id, "-" if row.task is None else str(row.task), row.state,
            "-" if row.exit_code is None else str(row.exit_code), row.host or "-", str(row.attempt or "-"), row.note,
        ]
        for row in found
    ]  # fmt: skip
    header = ("submission", "job", "id", "task", "state", "exit", "host", "attempt", "")
    text = f"{table(lines, header)}\n\n{summary(found)}" if found else f"no jobs under {', '.join(map(str, where))}"
    show_result([row._asdict() for row in found], text, quiet)
    return 0
