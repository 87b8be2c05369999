"""What the schedulers have in common. A scheduler is a class here, and a line in `schedulers/__init__.py`."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kava.cluster.spec import JobSpec, clock
from kava.errors import ConfigError, RunError

if TYPE_CHECKING:  # `kava task` starts with every job: it loads neither pydantic nor yaml
    from kava.cluster.site_file import Site

# A scheduler's states in the words of `kava jobs`.
PENDING, RUNNING, DONE, FAILED, CANCELLED, UNKNOWN = "pending", "running", "done", "failed", "cancelled", "unknown"
States = dict[tuple[str, int | None], str]  # (job id, task from 0, or None for all of the job) -> state


def words_for_states(**words: str) -> dict[str, str]:
    """A scheduler's word for a state -> ours, from ours="word word"."""
    return {word: state for state, text in words.items() for word in text.split()}


def printed_json(printed: str) -> dict[str, Any]:
    """The JSON that a scheduler's command printed."""
    try:
        data = json.loads(printed or "{}")
    except ValueError as error:
        raise RunError(f"the scheduler printed no JSON ({error}): {printed[:60]!a}") from error
    if not isinstance(data, dict):
        raise RunError(f"the scheduler printed no mapping: {printed[:60]!a}")
    return data


class Scheduler(ABC):
    """Directives, variables and commands of one scheduler."""

    name: ClassVar[str]
    prefix: ClassVar[str] = ""  # of a directive; "" = the scheduler has none
    lines: ClassVar[tuple[str, ...]] = ()  # directives; {name} is one of `values`
    rerun: ClassVar[tuple[str, str]] = ("-r n", "-r y")  # directives of a job that must not, or may, run again
    unique: ClassVar[tuple[str, str]] = ("", "")  # what tells the output files of jobs, and of arrays' tasks, apart
    no_qos: ClassVar[str] = ""  # what to do instead, where the scheduler has no quality of service
    submit_command: ClassVar[tuple[str, ...]] = ("qsub",)  # the submit command
    waits: ClassVar[tuple[str, ...]] = ()  # its words for jobs that must end well first; {} are their ids
    between: ClassVar[str] = ":"  # these ids
    id_pattern: ClassVar[str] = r"(?m)^\s*(\S+).*\s*\Z"  # the job's id in what the submit command prints
    state_command: ClassVar[tuple[str, ...]] = ()  # the command that prints the states of jobs, before their ids
    state_words: ClassVar[Mapping[str, str]] = {}  # the scheduler's own words for states -> ours
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
    requeues: ClassVar[tuple[str, ...]] = ()  # the command that does, before the job's id
    head: ClassVar[tuple[str, ...]]  # shell lines that set `head`, the first node's name
    hold: ClassVar[tuple[str, ...]] = ()  # words that submit a job held, until its dependents are there
    release: ClassVar[str] = ""  # the command that releases it
    # Shell text that starts a command once on every node. mpirun is Open MPI's, which passes on only the variables that
    # it is told; the site file may name another launcher.
    launcher: ClassVar[str] = (
        "mpirun -np {nodes} --map-by ppr:1:node {exports} ${{LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH}}"
    )

    def __init__(self, site: "Site | None" = None):
        self.site = site

    def values(self, spec: JobSpec) -> dict[str, Any]:
        """What a directive may name; None: the job does not have it."""
        resources, last = spec.resources, self.first + (spec.array or 0) - 1
        return vars(resources) | {
            "name": spec.name,
            "gpus": resources.gpus or None,
            "walltime": clock(resources.time) if resources.time else None,
            "minutes": -(-resources.time // 60) if resources.time else None,
            "tasks": None if spec.array is None else f"{self.first}-{last}",
            "file": f"{spec.log}_{self.unique[spec.array is not None]}",
            "rerun": self.rerun[spec.requeue],
            "warned": spec.signal if spec.requeue else None,
        }

    def header(self, spec: JobSpec) -> list[str]:
        """The directives without their prefix; one that names a value which the job does not have is left out."""
        values = self.values(spec)
        lacking = [f"{{{name}}}" for name, value in values.items() if value is None]
        return [line.format_map(values) for line in self.lines if not any(name in line for name in lacking)]

    def directives(self, spec: JobSpec) -> list[str]:
        """The job's directives with their prefix, those of the site file last; none for a scheduler without directives."""
        if spec.resources.qos and self.no_qos:
            raise ConfigError(f"{self.name} has no qos", self.no_qos)
        return [f"{self.prefix} {line}" for line in [*self.header(spec), *spec.directives] if self.prefix]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        """The command that submits; `after` are (id, it is an array) that must end well first."""
        wait = [word.replace("{}", self.ids_of(after)) for word in self.waits] if after else []
        return [*self.submit_command, *wait, *([] if self.reads_script else [str(script)])]

    def ids_of(self, after: Sequence[tuple[str, bool]]) -> str:
        return self.between.join(job for job, _ in after)

    def parse_id(self, printed: str) -> str:
        """The job's id in what the submit command printed."""
        match = re.search(self.id_pattern, printed)
        if match is None:
            problem = f"{self.name} printed no job id: {printed.strip()!a}"
            raise RunError(problem, "look whether the job is in the queue")
        return match[1]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Commands that print the states of jobs; all are tried, and later ones override earlier ones."""
        return [[*self.state_command, *ids]]

    @abstractmethod
    def parse_states(self, command: Sequence[str], printed: str) -> States:
        """The states in the output of such a command."""

    def cancel(self, job: str) -> list[str]:
        return [self.kill, job]

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        """How a job puts itself back into the queue: a command, an exit code, or None."""
        return [*self.requeues, environ.get(self.job, "")] if self.requeues else self.requeue_code

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
        names = ("PATH", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *(name for name, _ in spec.environment))
        return self.launcher.format(**vars(spec.resources), exports=" ".join(f"-x {name}" for name in names))
