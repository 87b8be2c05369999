"""The schedulers by name."""

from __future__ import annotations

from kava.cluster.schedulers.base import Scheduler
from kava.cluster.schedulers.cobalt import Cobalt
from kava.cluster.schedulers.local import Local
from kava.cluster.schedulers.lsf import Lsf
from kava.cluster.schedulers.pbs import Pbs
from kava.cluster.schedulers.sge import GridEngine
from kava.cluster.schedulers.slurm import Slurm
from kava.cluster.schedulers.torque import Torque
from kava.cluster.site_file import Site
from kava.errors import ConfigError
from kava.registry import nearest

SCHEDULERS: dict[str, type[Scheduler]] = {one.name: one for one in (Slurm, Pbs, Torque, GridEngine, Lsf, Cobalt, Local)}


def scheduler_named(name: str, site: Site | None = None) -> Scheduler:
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {name!r}", nearest(name, list(SCHEDULERS)))
    return SCHEDULERS[name](site)
