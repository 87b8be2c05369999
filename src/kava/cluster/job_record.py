"""What jobs.json and the status files of tasks hold."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from kava.cluster.site_file import SchedulerName
from kava.cluster.spec import is_job_id
from kava.cluster.task import read_status
from kava.config.typed_file import Count, Record, checked, read_dict
from kava.run_files import Time


def _job_id(text: str) -> str:
    if not is_job_id(text):
        raise ValueError("no scheduler gives a job such an id")
    return text


class SubmittedJob(Record):
    """A job of a submission: its tasks (None: it is no array) and the status file of each."""

    label: str
    id: Annotated[str, AfterValidator(_job_id)]
    status: list[str]
    script: str
    tasks: Count | None = None
    after: list[str] = Field([])
    cancelled: bool = False


class SubmissionRecord(Record):
    name: str
    scheduler: SchedulerName
    submitted: str
    jobs: list[SubmittedJob]
    working_folder: str = "."


class TaskStatus(Record):
    """What the status file of a task says beyond what `kava task` itself reads back."""

    command: list[list[str]] = Field([])
    began: Time | None = None
    ended: Time | None = None


def read_submission(path: Path) -> dict[str, Any]:
    """jobs.json of one submission."""
    return read_dict(path, SubmissionRecord, "kava submit writes it; it is torn or was edited")


def read_task(path: Path) -> dict[str, Any]:
    """The status file of a task; {} where it is not written yet."""
    status = read_status(path)
    checked(status, TaskStatus, str(path), "remove it and submit the task again")
    return status
