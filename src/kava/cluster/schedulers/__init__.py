"""The schedulers by name."""

from typing import TYPE_CHECKING

from kava.cluster.schedulers.base import Scheduler
from kava.cluster.schedulers.cobalt import Cobalt
from kava.cluster.schedulers.local import Local
from kava.cluster.schedulers.lsf import Lsf
from kava.cluster.schedulers.pbs import Pbs, Torque
from kava.cluster.schedulers.sge import GridEngine
from kava.cluster.schedulers.slurm import Slurm
from kava.errors import ConfigError
from kava.registry import nearest

if TYPE_CHECKING:
    from kava.cluster.site_file import Site

CLASSES: tuple[type[Scheduler], ...] = (Slurm, Pbs, Torque, GridEngine, Lsf, Cobalt, Local)
SCHEDULERS = {scheduler.name: scheduler for scheduler in CLASSES}


def scheduler_named(name: str, site: "Site | None" = None) -> Scheduler:
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {name!r}", nearest(name, list(SCHEDULERS)))
    return SCHEDULERS[name](site)
