"""What jobs.json holds, and which texts may stand for a job in a scheduler's command."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from kava.cluster.site_file import SchedulerName
from kava.config.typed_file import Count, Record, read_dict

# A number first, so that neither a flag (--user=...) nor a word for all jobs (all, 0) reaches a command that ends jobs.
_ID = re.compile(r"(?!0+$)\d+(\[\])?(\.[A-Za-z0-9][\w.-]*)?")


def is_job_id(text: str) -> bool:
    """Whether a text is what schedulers call a job: 27, 27.server, 27[].server."""
    return _ID.fullmatch(text) is not None


def _job_id(text: str) -> str:
    if not is_job_id(text):
        raise ValueError("no scheduler gives a job such an id")
    return text


class SubmittedJob(Record):
    """A job of a submission: its tasks (None: it is no array) and the status file of each."""

    label: str
    id: Annotated[str, AfterValidator(_job_id)]
    status: list[str]
    tasks: Count | None = None
    after: list[str] = Field([])
    cancelled: bool = False


class SubmissionRecord(Record):
    name: str
    scheduler: SchedulerName
    submitted: str
    jobs: list[SubmittedJob]


def read_submission(path: Path) -> dict[str, Any]:
    """jobs.json of one submission."""
    return read_dict(path, SubmissionRecord, "kava submit writes it; it is torn or was edited")
