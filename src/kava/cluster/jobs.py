"""What became of submitted jobs: jobs.json, the tasks' own status files, and what the scheduler says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kava.cluster.schedulers import scheduler_named
from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.submit import FOLDER, PATIENCE, RECORD, refusal
from kava.cluster.task import OK, REFUSED, REQUEUED, STARTED, read_status
from kava.errors import DataError, RunError
from kava.files import write_json

LOST = "lost"  # it began, never said how it ended, and the scheduler does not have it any more
ENDED = (OK, FAILED, REFUSED)
DEPTHS = ("", "*/", "*/*/", "*/*/*/")


class Row(NamedTuple):
    """One task of one job."""

    submission: str
    label: str
    id: str
    task: int | None
    state: str
    exit_code: int | None
    host: str | None
    attempt: int
    note: str

    @property
    def open(self) -> bool:
        """Whether something may still become of it."""
        return self.state in (PENDING, RUNNING, STARTED, REQUEUED)


def records(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The submissions under `folders`, oldest first."""
    found = []
    for folder in folders:
        base = Path(folder)
        places = [base / RECORD, *(path for depth in DEPTHS for path in base.glob(f"{depth}{FOLDER}/*/{RECORD}"))]
        places += base.glob(f"*/{RECORD}") if base.name == FOLDER else []
        found += [path for path in places if path.is_file()]
    return sorted((_record(path) for path in dict.fromkeys(found)), key=lambda record: record["submitted"])


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record | {"folder": str(path.parent), "jobs": record["jobs"], "submitted": record["submitted"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record of jobs ({error})", "kava submit writes it") from error


def rows(record: dict[str, Any], ask: bool = True) -> list[Row]:
    """Every task of a submission. `ask`: also what the scheduler says."""
    scheduler = scheduler_named(record["scheduler"])
    said = states(scheduler, [job["id"] for job in record["jobs"]]) if ask else None
    found = []
    for job in record["jobs"]:
        tasks = range(job["tasks"]) if job["tasks"] is not None else [None]
        for task, file in zip(tasks, job["status"], strict=True):
            status = read_status(Path(file))
            state, note = _state(status, job["id"], task, said)
            if job.get("cancelled") and (state == UNKNOWN or (state == FAILED and status.get("signal"))):
                state = CANCELLED
            found.append(
                Row(
                    record["folder"], job["label"], job["id"], task, state, status.get("exit_code"),
                    status.get("host"), int(status.get("attempt", 0)), note,
                )
            )  # fmt: skip
    return found


def _state(status: dict[str, Any], job: str, task: int | None, said: States | None) -> tuple[str, str]:
    """The task's own word counts where it is final; else the scheduler's. A status of an earlier job counts for nothing."""
    own = status.get("state") if status.get("job") in (job, None) else None
    notes = status.get("reason") or []
    again = (said or {}).get((job, task))
    if own == FAILED and status.get("signal") and again in (PENDING, RUNNING):
        return again, "was stopped; the scheduler runs it again"
    if own in ENDED:
        return str(own), notes[0] if notes else ""
    if said is None:
        return str(own or UNKNOWN), ""
    theirs = said.get((job, task), said.get((job, None), UNKNOWN))
    if own == STARTED:
        here = theirs in (RUNNING, PENDING)
        return (RUNNING, "") if here else (LOST, f"it said nothing more; the scheduler says {theirs}")
    if own == REQUEUED and theirs in (PENDING, RUNNING):
        return theirs, "continues"
    if own is None and theirs == DONE:
        return UNKNOWN, "done, says the scheduler, but there is no status file"
    return (str(own) if own and theirs == UNKNOWN else theirs), ""


def states(scheduler: Scheduler, ids: Sequence[str]) -> States:
    """What the scheduler says; a later command's word goes over an earlier one's. {}: nothing."""
    found: States = {}
    for words in scheduler.states_commands(ids):
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 or done.stdout.strip():
            found |= scheduler.parse_states(words, done.stdout)
    return found


def cancel(record: dict[str, Any]) -> list[str]:
    """Ends what is open, last job first: one that waits must not start because another one ended. Returns the ids."""
    scheduler = scheduler_named(record["scheduler"])
    found = list(reversed(rows(record)))
    ids = list(dict.fromkeys(row.id for row in found if row.open or row.state == UNKNOWN))
    in_error = {row.id for row in found if row.state == REFUSED and scheduler.keeps_refused}
    ended, refusals = [job for job in in_error if refusal(scheduler.cancel(job)) is None], []
    for job in ids:
        why = refusal(scheduler.cancel(job))
        if why is None:
            ended.append(job)
        else:
            refusals.append(f"{job}: {why}")
    _remember(record, ended)
    if refusals:
        raise RunError(f"{scheduler.name} did not cancel {'; '.join(refusals)}", "kava jobs shows what is left")
    return ended


def _remember(record: dict[str, Any], ended: Sequence[str]) -> None:
    """jobs.json says what was cancelled: some schedulers forget a job at once that never began."""
    path = Path(record["folder"]) / RECORD
    kept = json.loads(path.read_text(encoding="utf-8"))
    for job in kept["jobs"]:
        if job["id"] in ended:
            job["cancelled"] = True
    if ended:
        write_json(path, kept)


def summary(found: Sequence[Row]) -> str:
    """`3 ok, 1 failed`."""
    names = [row.state for row in found]
    order = [OK, RUNNING, STARTED, PENDING, REQUEUED, DONE, FAILED, REFUSED, CANCELLED, LOST, UNKNOWN]
    return ", ".join(f"{names.count(name)} {name}" for name in order if name in names)
