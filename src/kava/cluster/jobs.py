"""States of submitted jobs: from jobs.json, the tasks' own status files, and the scheduler."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from kava.cluster.job_record import read_submission, read_task
from kava.cluster.progress import Progress, progress
from kava.cluster.schedulers import scheduler_named
from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.submit import FOLDER, PATIENCE, RECORD, Submission, refusal
from kava.cluster.task import OK, REFUSED, REQUEUED, STARTED
from kava.errors import RunError
from kava.files import write_json

LOST = "lost"  # it began, never said how it ended, and the scheduler does not have it any more
ENDED = (OK, FAILED, REFUSED)
DEPTHS = ("", "*/", "*/*/", "*/*/*/")


class JobRow(NamedTuple):
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
    progress: Progress = Progress()

    @property
    def open(self) -> bool:
        """Whether its state can still change."""
        return self.state in (PENDING, RUNNING, STARTED, REQUEUED)


def records(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The submissions under `folders`, oldest first."""
    paths: list[Path] = []
    for folder in folders:
        base = Path(folder)
        paths += [base / RECORD, *(path for depth in DEPTHS for path in base.glob(f"{depth}{FOLDER}/*/{RECORD}"))]
        paths += base.glob(f"*/{RECORD}") if base.name == FOLDER else []
    files = [path for path in dict.fromkeys(paths) if path.is_file()]
    entries = [read_submission(path) | {"folder": str(path.parent)} for path in files]
    return sorted(entries, key=lambda record: (record["submitted"], record["folder"]))


def rows(record: dict[str, Any], ask: bool = True) -> list[JobRow]:
    """Every task of a submission. `ask`: the scheduler is asked for the states that status files leave open."""
    scheduler = scheduler_named(record["scheduler"])
    known = states(scheduler, [job["id"] for job in record["jobs"]]) if ask else None
    tasks = []
    for job in record["jobs"]:
        for number, file in enumerate(job["status"]):
            task = None if job.get("tasks") is None else number
            status = read_task(Path(record["folder"]) / PurePath(file).name)  # beside jobs.json, wherever that is now
            state, note = _state(status, job["id"], task, known)
            if job.get("cancelled") and (state == UNKNOWN or (state == FAILED and status.get("signal"))):
                state = CANCELLED
            code, host, attempt = status.get("exit_code"), status.get("host"), status.get("attempt") or 0
            far = progress(status, record) if status.get("job") in (job["id"], None) else Progress()
            if state not in (RUNNING, STARTED):
                far = far._replace(left=None)
            tasks.append(JobRow(record["folder"], job["label"], job["id"], task, state, code, host, attempt, note, far))
    return tasks


def _state(status: dict[str, Any], job: str, task: int | None, known: States | None) -> tuple[str, str]:
    """The state and a note: the task's own status file where it is final, else the scheduler's state (`known`; None: it was
    not asked). A status file of an earlier job does not count."""
    own = status.get("state") if status.get("job") in (job, None) else None
    if own == FAILED and status.get("signal") and (again := (known or {}).get((job, task))) in (PENDING, RUNNING):
        return str(again), "was stopped; the scheduler runs it again"
    if own in ENDED:
        return str(own), str((status.get("reason") or [""])[0])
    if known is None:
        return str(own or UNKNOWN), ""
    queued = known.get((job, task), known.get((job, None), UNKNOWN))
    if own == STARTED:
        lost = queued not in (RUNNING, PENDING)
        return (LOST, f"it said nothing more; the scheduler says {queued}") if lost else (RUNNING, "")
    if own == REQUEUED and queued in (PENDING, RUNNING):
        return queued, "continues"
    if own is None and queued == DONE:
        return UNKNOWN, "done, says the scheduler, but there is no status file"
    return (str(own) if own and queued == UNKNOWN else queued), ""


def states(scheduler: Scheduler, ids: Sequence[str]) -> States:
    """The scheduler's states; later commands override earlier ones. {}: it says nothing."""
    known: States = {}
    for words in scheduler.states_commands(ids):
        try:
            process = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if process.returncode == 0 or process.stdout.strip():
            known |= scheduler.parse_states(words, process.stdout)
    return known


def refuse_twice(submission: Submission) -> None:
    """An error where jobs of the same work are still open: two of them would write the same files."""
    work = re.sub(r"-\d+$", "", submission.name)
    for record in records([Path(submission.folder).parent]):
        same = re.sub(r"-\d+$", "", record["name"]) == work
        ids = sorted({row.id for row in rows(record) if row.open}) if same else []
        if ids:
            problem = f"{record['folder']}: job {', '.join(ids)} of the same work is not through"
            raise RunError(problem, f"wait for it, or end it: kava jobs {record['folder']} --cancel")


def cancel(record: dict[str, Any]) -> list[str]:
    """The ids of the jobs that were ended. Last job first: one that waits must not start because another one ended."""
    scheduler = scheduler_named(record["scheduler"])
    tasks = rows(record)[::-1]
    in_error = {row.id for row in tasks if row.state == REFUSED and scheduler.keeps_refused}
    ended = [job for job in in_error if refusal(scheduler.cancel(job)) is None]
    under_way = dict.fromkeys(row.id for row in tasks if row.open or row.state == UNKNOWN)
    refusals = {job: refusal(scheduler.cancel(job)) for job in under_way}
    ended += [job for job, why in refusals.items() if why is None]
    path = Path(record["folder"]) / RECORD
    kept = read_submission(path)
    for job in kept["jobs"]:  # some schedulers forget a job at once that never began
        job |= {"cancelled": True} if job["id"] in ended else {}
    if ended:
        write_json(path, kept)
    refused = "; ".join(f"{job}: {why}" for job, why in refusals.items() if why is not None)
    if refused:
        raise RunError(f"{scheduler.name} did not cancel {refused}", "kava jobs shows what is left")
    return ended


def summary(tasks: Sequence[JobRow]) -> str:
    """`3 ok, 1 failed`."""
    names = [row.state for row in tasks]
    order = (OK, RUNNING, STARTED, PENDING, REQUEUED, DONE, FAILED, REFUSED, CANCELLED, LOST, UNKNOWN)
    return ", ".join(f"{names.count(name)} {name}" for name in order if name in names)
