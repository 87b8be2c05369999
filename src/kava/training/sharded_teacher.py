"""A frozen live teacher in shards: each process holds its share, and whole only the layer that computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from kava.align.rope import Rotary
from kava.backbone.layer_units import layers_of
from kava.config import SystemConfig
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.live import LiveTeacher
from kava.training.processes import is_distributed
from kava.training.sharding import RootUnit, placement


class ShardedTeacher(LiveTeacher):
    """A live teacher whose weights are gathered while it is called; all processes call it together."""

    def __init__(self, teacher: LiveTeacher, device: torch.device, system: SystemConfig):
        self.teacher, self.model = teacher, teacher.model
        self.shape, self.max_positions = teacher.shape, teacher.max_positions
        how = placement(device, system)
        for layer in layers_of(teacher.model.decoder):  # without gradients it does not matter how their keys leave them
            fully_shard(layer, reshard_after_forward=True, **how)
        self.root: Any = fully_shard(RootUnit(teacher.model), reshard_after_forward=True, **how)

    @property
    def rotary(self) -> Rotary | None:
        return self.teacher.rotary

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        entries: TeacherKV = self.root.value_of(lambda: self.teacher(batch, wants))
        if hasattr(self.root, "reset_iter_state"):  # newer torch: forgets the order of the calls, which backward needs
            self.root.reset_iter_state()
        return entries


def sharder(device: torch.device, system: SystemConfig) -> Callable[[LiveTeacher], LiveTeacher] | None:
    """Puts a teacher that was loaded on the CPU into shards; None where teachers stay whole."""
    if system.sharding != "fsdp2" or not is_distributed():
        return None
    return lambda teacher: ShardedTeacher(teacher, device, system)
