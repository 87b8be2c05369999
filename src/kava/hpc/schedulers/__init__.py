"""The schedulers by name."""

from __future__ import annotations

from kava.errors import ConfigError
from kava.hpc.schedulers.base import Scheduler
from kava.hpc.schedulers.cobalt import Cobalt
from kava.hpc.schedulers.local import Local
from kava.hpc.schedulers.lsf import Lsf
from kava.hpc.schedulers.pbs import Pbs
from kava.hpc.schedulers.sge import GridEngine
from kava.hpc.schedulers.slurm import Slurm
from kava.hpc.schedulers.torque import Torque
from kava.hpc.site_file import Site
from kava.registry import nearest

SCHEDULERS: dict[str, type[Scheduler]] = {one.name: one for one in (Slurm, Pbs, Torque, GridEngine, Lsf, Cobalt, Local)}


def scheduler_named(name: str, site: Site | None = None) -> Scheduler:
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {name!r}", nearest(name, list(SCHEDULERS)))
    return SCHEDULERS[name](site)
