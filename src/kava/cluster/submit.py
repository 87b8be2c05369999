"""Scripts to disk, jobs to the scheduler, their ids to jobs.json: all of a submission, or nothing of it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kava.cluster.render import script
from kava.cluster.schedulers.base import Scheduler
from kava.cluster.spec import JobSpec, singles
from kava.errors import RunError
from kava.files import write_json, write_text
from kava.provenance import revision

RECORD = "jobs.json"
FOLDER = ".jobs"
PATIENCE = 120  # seconds that a submit command may take


@dataclass(frozen=True)
class Submission:
    """Jobs that belong together; `folder` gets their scripts, states and ids. `files` (path, text) are what they read."""

    name: str
    folder: str
    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


def adapted(submission: Submission, scheduler: Scheduler) -> Submission:
    """The submission as this scheduler can take it: arrays that it does not have become single jobs."""
    jobs: list[JobSpec] = []
    renamed: dict[str, tuple[str, ...]] = {}
    notes = list(submission.notes)
    for spec in submission.jobs:
        after = tuple(name for one in spec.after for name in renamed.get(one, (one,)))
        spec = replace(spec, after=after)
        if spec.array is not None and (not scheduler.index or spec.array < scheduler.least):
            parts = singles(spec)
            renamed[spec.label] = tuple(part.label for part in parts)
            jobs += parts
            if not scheduler.index:
                notes.append(f"{scheduler.name} has no job arrays: {spec.label} is {len(parts)} single jobs")
        else:
            jobs.append(spec)
    if not scheduler.has_afterok and any(spec.after for spec in jobs):
        notes.append(
            f"{scheduler.name} cannot wait for success: dependent jobs look at the status files when they start"
        )
    return replace(submission, jobs=tuple(jobs), notes=tuple(notes))


def fresh(submission: Submission) -> Submission:
    """The submission under a name that is still free: seeds, seeds-2, ..."""
    folder, number = submission.folder, 1
    while Path(folder).exists():
        number += 1
        folder = f"{submission.folder}-{number}"
    if number == 1:
        return submission
    jobs = tuple(
        replace(spec, folder=folder, needs=tuple(folder + file.removeprefix(submission.folder) for file in spec.needs))
        for spec in submission.jobs
    )
    return replace(submission, name=f"{submission.name}-{number}", folder=folder, jobs=jobs)


def show(submission: Submission, scheduler: Scheduler) -> str:
    """What would be submitted: the commands, and each script."""
    parts = []
    for spec in submission.jobs:
        waits = [(f"<{one}>", False) for one in spec.after]
        path = _script_file(submission, spec)
        reads = f" < {shlex.quote(str(path))}" if scheduler.reads_script else ""
        command = shlex.join(scheduler.submit(path, spec, waits)) + reads
        parts.append(f"# {command}\n{script(spec, scheduler)}")
    return "\n".join(parts)


def submit(submission: Submission, scheduler: Scheduler, command: Sequence[str]) -> dict[str, Any]:
    """Submits in order and returns the record. If one is refused, those before it are cancelled and nothing is kept."""
    ids: dict[str, tuple[str, bool]] = {}  # label -> id, it is an array
    record: dict[str, Any] = {
        "name": submission.name,
        "scheduler": scheduler.name,
        "command": list(command),
        "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "working_folder": str(Path.cwd()),
        "jobs": [],
    }
    held: list[str] = []
    try:
        for name, text in submission.files:
            write_text(name, text)
        for spec in submission.jobs:
            Path(spec.log).parent.mkdir(parents=True, exist_ok=True)
            path = _script_file(submission, spec)
            write_text(path, script(spec, scheduler))
            path.chmod(0o755)
            waits = [ids.get(one, (one, False)) for one in spec.after]
            words = scheduler.submit(path, spec, waits)
            if scheduler.hold and not spec.after and any(spec.label in other.after for other in submission.jobs):
                words[1:1] = scheduler.hold
            stdin = path.read_text(encoding="utf-8") if scheduler.reads_script else ""
            job = scheduler.parse_id(run(words, stdin))
            ids[spec.label] = (job, spec.array is not None)
            held += [job] if scheduler.hold and words[1:2] == list(scheduler.hold[:1]) else []
            record["jobs"].append(_entry(spec, job, path, [one for one, _ in waits]))
            write_json(Path(submission.folder) / RECORD, record)
        for job in held:  # only now: a fast first job could end before those that wait for it exist
            run(scheduler.release(job))
    except BaseException:
        if not [job for job, _ in ids.values() if refusal(scheduler.cancel(job))]:  # else they have to be found again
            shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return record


def run(words: Sequence[str], stdin: str = "") -> str:
    """What a scheduler's command prints; its own message where it refuses."""
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError as error:
        raise RunError(f"{words[0]} is not here", "submit from a login node, or choose --scheduler") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{words[0]} did not answer within {PATIENCE} seconds", "try again; nothing is kept") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "(it says nothing)").replace("\n", "\n    ")
        raise RunError(
            f"{words[0]} refused with code {done.returncode}:\n    {said}",
            "nothing is submitted; --partition, --account, --qos, --time and the site file say what is asked for",
        )
    return done.stdout


def refusal(words: Sequence[str]) -> str | None:
    """Why a scheduler's command did not do it; None: it did."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"


def _script_file(submission: Submission, spec: JobSpec) -> Path:
    return Path(submission.folder) / f"{spec.label}.sh"


def _entry(spec: JobSpec, job: str, path: Path, after: list[str]) -> dict[str, Any]:
    asked: Mapping[str, Any] = {name: value for name, value in vars(spec.resources).items() if value is not None}
    return {
        "label": spec.label,
        "id": job,
        "name": spec.name,
        "tasks": spec.array,
        "after": after,
        "script": str(path),
        "status": spec.status_files(),
        "resources": dict(asked),
    }
