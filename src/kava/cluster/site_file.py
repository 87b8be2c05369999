"""The site file: what every job of this cluster needs. `kava_site.yaml` in configs/, or --site, or KAVA_SITE.

scheduler: slurm
partition: gpu            # also account, qos, time, mem, nodes, gpus, cpus: where a flag does not say otherwise
setup:                    # lines of shell, put into the script as they are
  - module load cuda/12.1
  - source ~/kava/bin/activate
environment: {HF_HOME: /shared/huggingface}
directives: {slurm: ["--constraint=a100"]}
container: apptainer exec --nv kava.sif
launcher: mpirun -n 4 -ppn 1     # starts one torchrun per node
sge: {pe: smp, pe_nodes: mpi, gpu: gpu, memory: mem_free, memory_per_slot: false}
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator

from kava.cluster.spec import Resources, parse_mem, parse_time
from kava.config.text import read_file
from kava.errors import ConfigError
from kava.registry import nearest

FILE = Path("configs") / "kava_site.yaml"
VARIABLE = "KAVA_SITE"
RESOURCES = ("nodes", "gpus", "cpus", "mem", "time", "partition", "account", "qos")
SchedulerName = Literal["slurm", "pbs", "torque", "sge", "lsf", "cobalt", "local"]
WORDS = {  # what is wrong with a value, by pydantic's kind of error
    **dict.fromkeys(("tuple_type", "string_type"), "is not text"),
    **dict.fromkeys(("dict_type", "model_type"), "is not a mapping"),
    **{"bool_type": "is not true or false", "literal_error": "is not one of them"},
}


def _lines(value: Any) -> tuple[str, ...]:
    entries = [value] if isinstance(value, str) and value else value or []
    if not isinstance(entries, list) or not all(isinstance(line, str) for line in entries):
        raise ValueError(f"{value!r} is not a list of lines", None)
    return tuple(entries)


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class GridEngineSite(BaseModel):
    """Names that every Grid Engine gives itself. None: the site has no such resource, nothing is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    pe: str | None = "smp"
    pe_nodes: str | None = None
    gpu: str | None = "gpu"
    memory: str | None = "mem_free"
    memory_per_slot: bool = False


class Site(BaseModel):
    """The file's contents; an absent file is an empty one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    scheduler: SchedulerName | None = None
    nodes: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    mem: int | None = None
    time: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: Lines = ()
    environment: dict[str, str] = {}
    directives: dict[SchedulerName, Lines] = {}
    container: Words = ()
    launcher: Words = ()
    sge: GridEngineSite = GridEngineSite()
    portable: bool = False

    def over(self, resources: Resources, keep: tuple[str, ...] = ()) -> Resources:
        """`resources` with the site's values, but for those named in `keep`."""
        own: dict[str, Any] = self.model_dump(include=set(RESOURCES) - set(keep), exclude_none=True)
        return replace(resources, **own)

    @field_validator(*RESOURCES, mode="before")
    @classmethod
    def _resource(cls, value: Any, info: ValidationInfo) -> Any:
        """The value as `Resources` takes it."""
        name = str(info.field_name)
        try:
            if name in ("mem", "time"):
                value = (parse_mem if name == "mem" else parse_time)(str(value))
            elif name in ("partition", "account", "qos"):
                value = str(value)
            elif not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} = {value!r} is not a number")
            replace(Resources(), **{name: value})
        except ConfigError as error:
            raise ValueError(error.message, error.hint) from error
        return value

    @field_validator("environment", mode="before")
    @classmethod
    def _as_the_file_writes_them(cls, value: Any) -> Any:
        spelt: dict[Any, str] = {True: "true", False: "false", None: ""}
        if not isinstance(value, dict):
            return value
        return {str(name): spelt[text] if isinstance(text, bool | None) else str(text) for name, text in value.items()}


def find_site(site_flag: str | Path | None, environ: Mapping[str, str]) -> Site:
    """The site file that a flag or KAVA_SITE names, else configs/kava_site.yaml where there is one."""
    named = site_flag or environ.get(VARIABLE)
    if not named and not FILE.is_file():
        return Site()
    path = Path(named or FILE).expanduser()
    if not path.is_file():
        how = "--site" if site_flag else VARIABLE
        raise ConfigError(f"{how} {path}: no such file", f"leave {how} out, or write the file; kava submit --help")
    return read_site(path)


def read_site(path: Path) -> Site:
    """The file's contents; a key that does not exist is an error that names the nearest."""
    data = {
        str(key): value for key, value in read_file(path, str(path), "kava submit --help").items() if value is not None
    }
    try:
        return Site.model_validate(data)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        raise _refusal(first, path) from error


def _refusal(error: Any, path: Path) -> ConfigError:
    """The error for one of pydantic's: file, line, key, and what is wrong with the value."""
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if f"{parts[-1]}:" in line.replace('"', "")]
    where = f"{path}:{f' line {numbers[0]}:' if numbers else ''} {'.'.join(parts)}"
    if error["type"] == "extra_forbidden" or error["loc"][-1] == "[key]":
        known = {"sge": tuple(GridEngineSite.model_fields), "directives": get_args(SchedulerName)}
        names = known[parts[0]] if len(parts) > 1 else tuple(Site.model_fields)
        return ConfigError(f"{where}: unknown key", nearest(parts[-1], names))
    if error["type"] == "value_error":
        message, hint = error["ctx"]["error"].args
        return ConfigError(f"{where}: {message}", hint)
    words = "is not a name" if parts[0] == "sge" and error["type"] == "string_type" else WORDS[error["type"]]
    misspelt = error["type"] == "literal_error" and isinstance(error["input"], str)
    hint = nearest(error["input"], get_args(SchedulerName)) if misspelt else None
    return ConfigError(f"{where}: {error['input']!r} {words}", hint)
