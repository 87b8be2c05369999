"""Write scripts, submit jobs, record their ids in jobs.json: all of a submission, or nothing of it."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from kava.cluster.render import script
from kava.cluster.schedulers.base import Scheduler
from kava.cluster.spec import JobSpec, now, singles
from kava.errors import RunError
from kava.files import make_folder, write_json, write_text
from kava.outputs import Output, check_folder, check_outputs
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
    students: tuple[str, ...] = ()  # folders that must be there already


def adapted(submission: Submission, scheduler: Scheduler) -> Submission:
    """The submission for this scheduler: arrays that it does not have become single jobs."""
    jobs: list[JobSpec] = []
    labels: dict[str, list[str]] = {}  # of the jobs that stand for the job of this label
    notes = list(submission.notes)
    for spec in submission.jobs:
        after = tuple(name for label in spec.after for name in labels.get(label, [label]))
        split = spec.array is not None and (not scheduler.index or spec.array < scheduler.least)
        parts = singles(spec) if split else [spec]
        labels[spec.label] = [part.label for part in parts]
        jobs += [replace(part, after=after) for part in parts]
        if split and not scheduler.index:
            notes.append(f"{scheduler.name} has no job arrays: {spec.label} is {spec.array} single jobs")
    if not scheduler.has_afterok and any(spec.after for spec in submission.jobs):
        problem = f"{scheduler.name} cannot wait for success"
        notes.append(f"{problem}: dependent jobs look at the status files when they start")
    return replace(submission, jobs=tuple(jobs), notes=tuple(notes))


def fresh(submission: Submission) -> Submission:
    """The submission under a name that is still free: seeds, seeds-2, ..."""
    endings = chain([""], (f"-{number}" for number in count(2)))
    end = next(end for end in endings if not os.path.exists(submission.folder + end))
    folder = submission.folder + end
    jobs = tuple(
        replace(spec, folder=folder, needs=tuple(folder + file.removeprefix(submission.folder) for file in spec.needs))
        for spec in submission.jobs
    )
    return replace(submission, name=submission.name + end, folder=folder, jobs=jobs)


def preview(submission: Submission, scheduler: Scheduler) -> str:
    """What would be submitted: the commands, and each script."""
    parts = []
    for spec in submission.jobs:
        command = shlex.join(scheduler.submit(spec.script, spec, [(f"<{label}>", False) for label in spec.after]))
        command += f" < {shlex.quote(str(spec.script))}" if scheduler.reads_script else ""
        parts.append(f"# {command}\n{script(spec, scheduler)}")
    return "\n".join(parts)


def submit_all(submissions: Sequence[Submission], scheduler: Scheduler, command: Sequence[str]) -> list[dict[str, Any]]:
    """The records of all submissions. One that is refused ends it; those before it stay."""
    records: list[dict[str, Any]] = []
    for submission in submissions:
        try:
            records.append(submit(submission, scheduler, command))
        except RunError as error:
            kept = ", ".join(record["jobs"][0]["id"] for record in records)
            more = f" (submitted before it, and kept: {kept})" if kept else ""
            raise RunError(f"{error.message}{more}", error.hint) from error
    return records


def check_places(submission: Submission) -> None:
    """Raises before anything is submitted where a script, a record or a job's output could not be written."""
    check_folder("the folder of the submission", submission.folder)
    for spec in submission.jobs:
        check_folder("the folder of --log", Path(spec.log).parent)
    check_outputs([Output("the jobs' file", Path(name)) for name, _ in submission.files])


def submit(submission: Submission, scheduler: Scheduler, command: Sequence[str]) -> dict[str, Any]:
    """The record of a submission, whose jobs are submitted in order. If one is refused, those before it are cancelled and
    nothing is kept."""
    if sys.platform == "win32":
        raise RunError(
            "job scripts run under bash, which Windows lacks", "submit from WSL; --dry_run shows the scripts"
        )
    ids: dict[str, tuple[str, bool]] = {}  # label -> id, whether it is an array
    record: dict[str, Any] = {
        "name": submission.name,
        "scheduler": scheduler.name,
        "command": list(command),
        "submitted": now(),
        "revision": revision(),
        "working_folder": str(Path.cwd()),
        "jobs": [],
    }
    held: list[str] = []
    try:
        for name, text in submission.files:
            write_text(name, text)
        for spec in submission.jobs:
            make_folder(Path(spec.log).parent)
            text = script(spec, scheduler)
            write_text(spec.script, text)
            spec.script.chmod(0o755)
            waits = [ids.get(label, (label, False)) for label in spec.after]
            words = scheduler.submit(spec.script, spec, waits)
            hold = scheduler.hold and not spec.after and any(spec.label in other.after for other in submission.jobs)
            words[1:1] = scheduler.hold if hold else ()
            job = scheduler.parse_id(run(words, text if scheduler.reads_script else ""))
            ids[spec.label] = (job, spec.array is not None)
            held += [job] if hold else []
            record["jobs"].append(spec.entry(job, [job_id for job_id, _ in waits]))
            write_json(Path(submission.folder) / RECORD, record)
        for job in held:  # only now: a fast first job could end before those that wait for it exist
            run([scheduler.release, job])
    except BaseException:
        refusals = [refusal(scheduler.cancel(job)) for job, _ in ids.values()]
        if not any(refusals):  # else the jobs that are left have to be found by hand
            shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return record


def run(words: Sequence[str], stdin: str = "") -> str:
    """What a scheduler's command prints; where it refuses, its message becomes the error."""
    try:
        process = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except FileNotFoundError as error:
        raise RunError(f"{words[0]} is not here", "submit from a login node, or choose --scheduler") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{words[0]} did not answer within {PATIENCE} seconds", "try again; nothing is kept") from error
    if process.returncode:
        output = (process.stderr.strip() or process.stdout.strip() or "(it says nothing)").replace("\n", "\n    ")
        raise RunError(
            f"{words[0]} refused with code {process.returncode}:\n    {output}",
            "nothing is submitted; --partition, --account, --qos, --time and the site file say what is asked for",
        )
    return process.stdout


def refusal(words: Sequence[str]) -> str | None:
    """Why a scheduler's command failed; None if it succeeded."""
    try:
        process = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    output = (process.stderr or process.stdout).strip()
    return None if process.returncode == 0 else output or f"exit code {process.returncode}"
