"""What the schedulers have in common. One of them is a file with one class, and a line in `schedulers/__init__.py`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kava.cluster.spec import JobSpec
from kava.errors import RunError

if TYPE_CHECKING:  # `kava task` starts with every job: it loads neither pydantic nor yaml
    from kava.cluster.site_file import Site

# The states that `kava jobs` shows of what a scheduler says.
PENDING, RUNNING, DONE, FAILED, CANCELLED, UNKNOWN = "pending", "running", "done", "failed", "cancelled", "unknown"
States = dict[tuple[str, int | None], str]  # (job id, task from 0, or None for all of the job) -> state


class Scheduler(ABC):
    """Directives, variables and commands of one scheduler."""

    name: ClassVar[str]
    prefix: ClassVar[str] = ""  # of a directive
    job: ClassVar[str]  # variable with the job's id
    index: ClassVar[str] = ""  # variable with the task's number; "" = no arrays
    first: ClassVar[int] = 0  # number of the first task
    least: ClassVar[int] = 1  # tasks that an array must have
    home: ClassVar[str] = ""  # variable with the folder it was submitted from; "" = it starts there
    has_afterok: ClassVar[bool] = True
    warns: ClassVar[bool] = True  # it sends USR1 before the time limit, where asked to
    reads_script: ClassVar[bool] = False  # the submit command takes the script on its standard input
    refused: ClassVar[int] = 3  # exit code of a job that does not want to run
    keeps_refused: ClassVar[bool] = False  # such a job stays in the queue, in error, until it is cancelled
    hold: ClassVar[tuple[str, ...]] = ()  # words that submit a job held, until its dependents are there

    def __init__(self, site: Site | None = None):
        self.site = site

    @abstractmethod
    def header(self, spec: JobSpec) -> list[str]:
        """The directives, without their prefix."""

    @abstractmethod
    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        """The command that submits; `after` are (id, it is an array) that must end well first."""

    def parse_id(self, printed: str) -> str:
        """The job's id in what the command printed."""
        lines = printed.strip().splitlines()
        found = re.match(r"\S+", lines[-1].strip()) if lines else None
        if found is None:
            raise RunError(
                f"{self.name} printed no job id: {printed.strip()!r}", "look whether the job is in the queue"
            )
        return found[0]

    def release(self, job: str) -> list[str]:
        """The command that lets a job go that was submitted held."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Commands that show the states of jobs; each is tried, what one does not know the next may."""

    @abstractmethod
    def parse_states(self, command: Sequence[str], printed: str) -> States:
        """What one of those commands says."""

    @abstractmethod
    def cancel(self, job: str) -> list[str]:
        """The command that ends a job."""

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        """How a job puts itself back into the queue: a command, an exit code, or not at all."""
        return None

    def task_of(self, environ: Mapping[str, str]) -> int | None:
        """The number of the array's task that this process is, from 0."""
        text = environ.get(self.index, "") if self.index else ""
        return int(text) - self.first if text.isdigit() else None

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        return environ.get(self.job)

    @abstractmethod
    def head(self) -> list[str]:
        """Shell lines that set `head`, the first node's name."""

    @property
    def number(self) -> str:
        """Shell text for the number in the job's id."""
        return f"${{{self.job}%%[!0-9]*}}"

    def launch(self, spec: JobSpec) -> str:
        """Shell text that starts a command once on every node.

        mpirun is Open MPI's, which takes along only the variables that it is told; the site file may say otherwise.
        """
        names = ("PATH", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *(name for name, _ in spec.environment))
        known = " ".join(f"-x {name}" for name in names)
        return f"mpirun -np {spec.resources.nodes} --map-by ppr:1:node {known} ${{LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH}}"


def word_after(printed: str, pattern: str, name: str) -> str:
    """The first group of `pattern` in what a submit command printed."""
    found = re.search(pattern, printed)
    if found is None:
        raise RunError(f"{name} printed no job id: {printed.strip()!r}", "look whether the job is in the queue")
    return found[1]
