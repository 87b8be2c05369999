"""What the schedulers have in common. A scheduler is a file with one class, and a line in `schedulers/__init__.py`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kava.cluster.spec import JobSpec
from kava.errors import ConfigError, RunError

if TYPE_CHECKING:  # `kava task` starts with every job: it loads neither pydantic nor yaml
    from kava.cluster.site_file import Site

# A scheduler's states in the words of `kava jobs`.
PENDING, RUNNING, DONE, FAILED, CANCELLED, UNKNOWN = "pending", "running", "done", "failed", "cancelled", "unknown"
States = dict[tuple[str, int | None], str]  # (job id, task from 0, or None for all of the job) -> state


class Scheduler(ABC):
    """Directives, variables and commands of one scheduler."""

    name: ClassVar[str]
    prefix: ClassVar[str] = ""  # of a directive
    no_qos: ClassVar[str] = ""  # what to do instead, where the scheduler has no quality of service
    id_pattern: ClassVar[str] = r"(?m)^\s*(\S+).*\s*\Z"  # the job's id in what the submit command prints
    kill: ClassVar[str] = "qdel"  # the command that ends a job
    job: ClassVar[str]  # variable with the job's id
    index: ClassVar[str] = ""  # variable with the task's number; "" = no arrays
    first: ClassVar[int] = 0  # number of the first task
    least: ClassVar[int] = 1  # tasks that an array must have
    home: ClassVar[str] = ""  # variable with the folder it was submitted from; "" = it starts there
    has_afterok: ClassVar[bool] = True
    warns: ClassVar[bool] = True  # it can send USR1 before the time limit
    reads_script: ClassVar[bool] = False  # the submit command takes the script on its standard input
    refused: ClassVar[int] = 3  # exit code of a job that refuses to run
    keeps_refused: ClassVar[bool] = False  # such a job stays in the queue, in error, until it is cancelled
    requeue_code: ClassVar[int | None] = None  # exit code that puts a job back into the queue
    head: ClassVar[tuple[str, ...]]  # shell lines that set `head`, the first node's name
    hold: ClassVar[tuple[str, ...]] = ()  # words that submit a job held, until its dependents are there

    def __init__(self, site: Site | None = None):
        self.site = site

    @abstractmethod
    def header(self, spec: JobSpec) -> list[str]:
        """The directives, without their prefix."""

    @abstractmethod
    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        """The command that submits; `after` are (id, it is an array) that must end well first."""

    def directives(self, spec: JobSpec) -> list[str]:
        """The job's directives with their prefix, those of the site file last; none for a scheduler without directives."""
        if spec.resources.qos and self.no_qos:
            raise ConfigError(f"{self.name} has no qos", self.no_qos)
        return [f"{self.prefix} {line}" for line in [*self.header(spec), *spec.directives] if self.prefix]

    def parse_id(self, printed: str) -> str:
        """The job's id in what the submit command printed."""
        match = re.search(self.id_pattern, printed)
        if match is None:
            raise RunError(
                f"{self.name} printed no job id: {printed.strip()!r}", "look whether the job is in the queue"
            )
        return match[1]

    def release(self, job: str) -> list[str]:
        """The command that releases a job submitted on hold."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Commands that print the states of jobs; all are tried, and later ones override earlier ones."""

    @abstractmethod
    def parse_states(self, command: Sequence[str], printed: str) -> States:
        """The states in the output of such a command."""

    def cancel(self, job: str) -> list[str]:
        return [self.kill, job]

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        """How a job puts itself back into the queue: a command, an exit code, or None."""
        return self.requeue_code

    def task_of(self, environ: Mapping[str, str]) -> int | None:
        """The number of this process's array task, counted from 0."""
        text = environ.get(self.index, "") if self.index else ""
        return int(text) - self.first if text.isdigit() else None

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        return environ.get(self.job)

    @property
    def number(self) -> str:
        """Shell text for the number in the job's id."""
        return f"${{{self.job}%%[!0-9]*}}"

    def launch(self, spec: JobSpec) -> str:
        """Shell text that starts a command once on every node.

        mpirun is Open MPI's, which passes on only the variables that it is told; the site file may name another launcher.
        """
        names = ("PATH", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *(name for name, _ in spec.environment))
        variables = " ".join(f"-x {name}" for name in names)
        return f"mpirun -np {spec.resources.nodes} --map-by ppr:1:node {variables} ${{LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH}}"
