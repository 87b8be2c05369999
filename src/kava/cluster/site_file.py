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

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kava.cluster.spec import Resources, parse_mem, parse_time
from kava.errors import ConfigError
from kava.registry import nearest

FILE = Path("configs") / "kava_site.yaml"
VARIABLE = "KAVA_SITE"
SCHEDULERS = ("slurm", "pbs", "torque", "sge", "lsf", "cobalt", "local")
RESOURCES = ("nodes", "gpus", "cpus", "mem", "time", "partition", "account", "qos")


@dataclass(frozen=True)
class GridEngine:
    """Names that every Grid Engine gives itself. None: the site has no such resource, nothing is asked for."""

    pe: str | None = "smp"
    pe_nodes: str | None = None
    gpu: str | None = "gpu"
    memory: str | None = "mem_free"
    memory_per_slot: bool = False


@dataclass(frozen=True)
class Site:
    """What the file says; an absent file is an empty one."""

    path: Path | None = None
    scheduler: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    directives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    container: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    sge: GridEngine = field(default_factory=GridEngine)
    portable: bool = False

    def over(self, resources: Resources, keep: tuple[str, ...] = ()) -> Resources:
        """`resources` with the site's values, but for those named in `keep`."""
        return replace(resources, **{name: value for name, value in self.resources.items() if name not in keep})


def find_site(given: str | Path | None, environ: Mapping[str, str]) -> Site:
    """The site file that a flag or KAVA_SITE names, else configs/kava_site.yaml where there is one."""
    named = given or environ.get(VARIABLE)
    if not named and not FILE.is_file():
        return Site()
    path = Path(named or FILE).expanduser()
    if not path.is_file():
        how = "--site" if given else VARIABLE
        raise ConfigError(f"{how} {path}: no such file", f"leave {how} out, or write the file; kava submit --help")
    return read_site(path)


def read_site(path: Path) -> Site:
    """The file's contents; a key that does not exist is an error that names the nearest."""
    from kava.config.text import read_file

    data = read_file(path, str(path))
    reader = _Reader(path)
    known = ("scheduler", *RESOURCES, "setup", "environment", "directives", "container", "launcher", "sge", "portable")
    reader.known(data, known, "")
    scheduler = reader.text(data, "scheduler")
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise reader.wrong("scheduler", f"{scheduler!r} is not one of them", nearest(scheduler, SCHEDULERS))
    sge = reader.mapping(data, "sge")
    reader.known(sge, tuple(GridEngine.__dataclass_fields__), "sge.")
    for name, value in sge.items():
        fits = isinstance(value, bool) if name == "memory_per_slot" else value is None or isinstance(value, str)
        if not fits:
            raise reader.wrong(f"sge.{name}", f"{value!r} is not {'true or false' if name[-1] == 't' else 'a name'}")
    directives = reader.mapping(data, "directives")
    reader.known(directives, SCHEDULERS, "directives.")
    return Site(
        path=path,
        scheduler=scheduler,
        resources=reader.resources(data),
        setup=reader.lines(data, "setup"),
        environment=tuple((str(name), _value(value)) for name, value in reader.mapping(data, "environment").items()),
        directives={name: reader.lines(directives, name, "directives.") for name in directives},
        container=tuple(shlex.split(reader.text(data, "container") or "")),
        launcher=tuple(shlex.split(reader.text(data, "launcher") or "")),
        sge=GridEngine(**sge),
        portable=reader.switch(data, "portable"),
    )


@dataclass(frozen=True)
class _Reader:
    """Values of the kinds that they must have, or an error with file, line and key."""

    path: Path

    def wrong(self, key: str, what: str, hint: str | None = None) -> ConfigError:
        leaf = key.rpartition(".")[2]
        lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        place = next((number for number, line in enumerate(lines, 1) if f"{leaf}:" in line.replace('"', "")), None)
        return ConfigError(f"{self.path}:{f' line {place}:' if place else ''} {key}: {what}", hint)

    def known(self, data: Mapping[str, Any], names: tuple[str, ...], prefix: str) -> None:
        for name in data:
            if name not in names:
                raise self.wrong(f"{prefix}{name}", "unknown key", nearest(str(name), names))

    def text(self, data: Mapping[str, Any], key: str) -> str | None:
        value = data.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, f"{value!r} is not text")
        return value

    def switch(self, data: Mapping[str, Any], key: str) -> bool:
        value = data.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, f"{value!r} is not true or false")
        return value

    def mapping(self, data: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = data.get(key) or {}
        if not isinstance(value, dict):
            raise self.wrong(key, f"{value!r} is not a mapping")
        return value

    def lines(self, data: Mapping[str, Any], key: str, prefix: str = "") -> tuple[str, ...]:
        value = data.get(key) or []
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(line, str) for line in entries):
            raise self.wrong(prefix + key, f"{value!r} is not a list of lines")
        return tuple(entries)

    def resources(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What the file asks for, checked."""
        found: dict[str, Any] = {}
        for name in RESOURCES:
            value = data.get(name)
            if value is None:
                continue
            try:
                if name in ("mem", "time"):
                    value = (parse_mem if name == "mem" else parse_time)(str(value))
                elif name in ("nodes", "gpus", "cpus"):
                    if not isinstance(value, int) or isinstance(value, bool):
                        raise ConfigError(f"{name} = {value!r} is not a number")
                else:
                    value = str(value)
                one: dict[str, Any] = {name: value}
                replace(Resources(), **one)
            except ConfigError as error:
                raise self.wrong(name, error.message, error.hint) from error
            found[name] = value
        return found


def _value(value: Any) -> str:
    """An environment's value as the file writes it."""
    return {True: "true", False: "false", None: ""}.get(value, "") if isinstance(value, bool | None) else str(value)
