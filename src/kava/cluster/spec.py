"""What a job is on any scheduler: commands, resources, what it waits for. Checked on construction."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from kava.errors import ConfigError

PLAIN = re.compile(r"[A-Za-z0-9_.,:@+/=-]+")  # what may stand in a directive, where nothing can be quoted
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
# 4711, 27_4, 123[].server: a number first, so that neither a flag (--user=...) nor a word for all jobs (all, 0) reaches a
# command that ends jobs.
JOB_ID = re.compile(r"(?!0+$)\d+(_\d+)?(\[\])?(\.[A-Za-z0-9][\w.-]*)?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
INDEX = "INDEX"  # %INDEX% in a command is the number of the array's task
_UNITS = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024 * 1024}
_PERIODS = {"d": 86400, "h": 3600, "m": 60}


class Command(NamedTuple):
    """A command line; %NAME% in it is a value that is known when the job runs. `spread`: one process per GPU."""

    words: tuple[str, ...]
    spread: bool = False


@dataclass(frozen=True)
class Resources:
    """Requested resources. gpus, cpus and mem (in MB) are those of one node; time is in seconds; None = not requested."""

    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    mem: int | None = None
    time: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("mem", 1), ("time", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value}: it must be at least {least}")
        for name in ("partition", "account", "qos"):
            value = getattr(self, name)
            if value is not None and (not PLAIN.fullmatch(value) or value.startswith("-")):
                problem = f"{name} = {value!r} cannot stand in a scheduler's directive"
                raise ConfigError(problem, "letters, digits and . _ - : , @, the first no -")

    @property
    def processes(self) -> int:
        """Processes of a training: one per GPU, or one per node without any."""
        return self.nodes * max(1, self.gpus)


@dataclass(frozen=True)
class JobSpec:
    """One job. `label` is its name among the jobs of a submission, `name` the one in the queue.

    `tasks` are the command lists of an array's tasks; one list for all of them holds %INDEX% or names of `lists`
    (NAME, value per task). `after` are labels of earlier jobs or ids of the scheduler, `needs` status files that must
    say ok. `exported` are (NAME, default): variables that `sbatch --export=NAME=...` may set.
    """

    label: str
    name: str
    folder: str  # status files and scripts
    tasks: tuple[tuple[Command, ...], ...]
    resources: Resources = field(default_factory=Resources)
    array: int | None = None
    log: str = "logs/kava"  # prefix of the output files' names
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    signal: int = 120  # seconds before the time limit
    requeue: bool = True
    keep_going: bool = False  # later commands run even where one fails
    environment: tuple[tuple[str, str], ...] = ()
    path: str = ""  # a folder put first on PATH
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    exported: tuple[tuple[str, str], ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    portable: bool = False  # submitted by hand: the script makes its folder itself

    def __post_init__(self) -> None:
        check_name("job name", self.name)
        check_name("job label", self.label)
        if not PLAIN.fullmatch(self.log):
            problem = f"log folder {self.log!r} cannot stand in a scheduler's directive"
            raise ConfigError(problem, "choose a --log of letters, digits and . _ - / only")
        if self.array is not None and (self.array < 1 or len(self.tasks) not in (1, self.array)):
            raise ConfigError(f"job {self.label}: an array of {self.array} with {len(self.tasks)} commands")
        if self.array is None and len(self.tasks) != 1:
            raise ConfigError(f"job {self.label}: {len(self.tasks)} tasks, but no array")
        for name, _ in (*self.environment, *self.exported, *self.lists):
            if not VARIABLE.fullmatch(name):
                raise ConfigError(f"environment: {name!r} is not a variable's name")
        for line in self.directives:
            if "\n" in line or "\r" in line:
                raise ConfigError(f"directives: {line!r} has more than one line", "one directive per entry")
        values = [value for _, value in (*self.environment, *self.exported)]
        for text in (*values, self.folder, *(word for task in self.tasks for part in task for word in part.words)):
            if "\0" in text:
                raise ConfigError(f"job {self.label}: {text!r} holds a null character")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that %NAME% in a command or a path may have."""
        exported = [name for name, _ in self.exported]
        derived = ["CONFIG_NAME"] if "CONFIG" in exported else []
        return (*([] if self.array is None else [INDEX]), *exported, *derived, *(name for name, _ in self.lists))

    @property
    def stop_after(self) -> int | None:
        """Seconds until the warning before the time limit."""
        return max(60, self.resources.time - self.signal) if self.resources.time else None

    def status_file(self, task: int | str | None = None) -> str:
        """The status file of task number `task` (None: the job is no array)."""
        return f"{self.folder}/status-{self.label}{'' if task is None else f'-{task}'}.json"

    def status_files(self) -> list[str]:
        return [self.status_file(task) for task in ([None] if self.array is None else range(self.array))]

    @property
    def script(self) -> Path:
        return Path(self.folder) / f"{self.label}.sh"

    def entry(self, job: str, after: list[str]) -> dict[str, Any]:
        """The job in jobs.json; `job` is its id, `after` those of the jobs that it waits for."""
        resources = {name: value for name, value in vars(self.resources).items() if value is not None}
        return {
            "label": self.label, "id": job, "name": self.name, "tasks": self.array, "after": after,
            "script": str(self.script), "status": self.status_files(), "resources": resources,
        }  # fmt: skip

    def needed(self) -> str:
        """All of the job's status files as one word of `kava task --needs`."""
        return self.status_file(f"[0-{self.array - 1}]" if self.array is not None else None)


def singles(spec: JobSpec) -> list[JobSpec]:
    """An array as jobs of one task each, for a scheduler without arrays (or an array of one)."""
    if spec.array is None:
        raise ValueError(f"{spec.label} is no array")
    jobs = []
    for task in range(spec.array):
        values = {INDEX: str(task)} | {name: entries[task] for name, entries in spec.lists}
        commands = spec.tasks[task if len(spec.tasks) > 1 else 0]
        own = tuple(Command(tuple(filled(word, values) for word in words), spread) for words, spread in commands)
        label, name = f"{spec.label}-{task}", f"{spec.name}-{task}"
        jobs.append(replace(spec, label=label, name=name, array=None, lists=(), tasks=(own,)))
    return jobs


def filled(word: str, values: dict[str, str]) -> str:
    """The word with every %NAME% replaced by its value; a name without a value stays as it is."""
    return re.sub(r"%(\w+)%", lambda match: values.get(match[1], match[0]), word)


def parse_mem(text: str) -> int:
    """MB of "64G", "64GB", "512M"."""
    amount = re.fullmatch(r"(\d+)\s*([kmgt])i?b?", str(text).strip().lower())
    if amount is None:
        raise ConfigError(f"mem = {text!r} is not an amount of memory", "write it with its unit: 64G, 512M")
    return max(1, int(int(amount[1]) * _UNITS[amount[2]]))


def parse_time(text: str) -> int:
    """Seconds of "48:00:00", "2-00:00:00", "48h", "90m", "7d"."""
    short = re.fullmatch(r"(\d+)\s*([dhm])", str(text).strip().lower())
    if short is not None:
        return int(short[1]) * _PERIODS[short[2]]
    clock_time = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", str(text).strip())
    if clock_time is None:
        raise ConfigError(f"time = {text!r} is not a length of time", "write 48:00:00, 2-00:00:00, 48h or 90m")
    days, hours, minutes, seconds = (int(part or 0) for part in clock_time.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def clock(seconds: int) -> str:
    """HH:MM:SS; hours may be more than two digits."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def job_name(*parts: str) -> str:
    """A name that every queue accepts, from any text."""
    text = "-".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", part).strip("-") for part in parts if part)
    return f"kava-{text}"[:60].rstrip("-")


def check_warning(seconds: int, limit: int | None) -> None:
    """Refuses a warning before the time limit that would come before the job begins."""
    if limit is not None and seconds >= limit:
        problem = f"--signal {seconds}: the time limit is {limit} seconds ({clock(limit)})"
        raise ConfigError(problem, "lower --signal, raise --time, or --no_requeue")


def is_job_id(text: str) -> bool:
    """Whether a text is what schedulers call a job."""
    return JOB_ID.fullmatch(text) is not None


def check_ids(ids: Sequence[str]) -> None:
    """Refuses what is no scheduler's id of a job."""
    for word in ids:
        if not is_job_id(word):
            raise ConfigError(f"--after {word!a} is not a job's id", "kava jobs shows them: 4711")


def check_name(what: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise ConfigError(f"{what} {value!r} is not a name", "letters, digits, . _ - and a letter first")
