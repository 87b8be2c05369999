"""kava jobs: states of submitted jobs, and cancelling them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import show_result
from kava.cli.student import Quiet
from kava.text_table import table

if TYPE_CHECKING:
    from kava.cluster.jobs import JobRow
    from kava.cluster.progress import Progress


def jobs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER ...]", help="runs, or folders of runs; default: outputs")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="cancel every job that has not finished")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="read the status files only, without asking a scheduler")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Print the state of every submitted task: from its status file, else from the scheduler; how long it has run, how many
    updates its training has made, and the time that is left at this pace.

    pending, running, ok, failed, refused (something it needs is not ok), requeued, cancelled, lost (it started, wrote no
    result, and the scheduler does not know it any more).
    """
    import os

    from kava.cluster.jobs import cancel as cancel_jobs
    from kava.cluster.jobs import records, rows, summary
    from kava.errors import RunError

    roots = folders or [Path(os.environ.get("KAVA_OUTPUT_PATH") or "outputs")]
    for folder in roots:
        if not folder.is_dir():
            raise RunError(f"no folder {folder}", "name the folder that kava submit wrote to")
    known = records(roots)
    if cancel:
        cancelled = [job for record in known for job in cancel_jobs(record)]
        show_result({"cancelled": cancelled}, f"cancelled: {', '.join(cancelled) or 'nothing was open'}", quiet)
        return 0
    states = [row for record in known for row in rows(record, ask=not offline)]
    lines = [
        [
            row.submission, row.label, row.id, "-" if row.task is None else str(row.task), row.state,
            *_cells(row.progress),
            "-" if row.exit_code is None else str(row.exit_code), row.host or "-", str(row.attempt or "-"), row.note,
        ]
        for row in states
    ]  # fmt: skip
    header = ("submission", "job", "id", "task", "state", "updates", "time", "left", "exit", "host", "attempt", "")
    text = f"{table(lines, header)}\n\n{summary(states)}" if states else f"no jobs under {', '.join(map(str, roots))}"
    show_result([_as_json(row) for row in states], text, quiet)
    return 0


def _cells(far: "Progress") -> tuple[str, str, str]:
    """Updates, time and time left, for the table."""
    from kava.cluster.spec import clock

    seconds, left = ("-" if value is None else clock(round(value)) for value in (far.seconds, far.left))
    updates = "-" if far.updates is None else f"{far.updates}/{far.total or '?'}"
    return updates, seconds, left


def _as_json(row: "JobRow") -> dict[str, Any]:
    return {**{name: value for name, value in row._asdict().items() if name != "progress"}, **row.progress._asdict()}
