"""Teachers that take turns on a device: the weights of one that does not read are elsewhere.

On a GPU they rest in host memory (pinned, so that they come quickly) and are never copied back: they are frozen. On a CPU
they rest on the disk and are read again for every pass, so that memory holds the student and one teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.foreign import ForeignTeacher
from kava.teachers.live import LiveTeacher

Live = LiveTeacher | ForeignTeacher


class OffloadedTeacher:
    """A live teacher in the same words. `load(device)` makes it; what is known of it stays when its weights go."""

    def __init__(self, load: Callable[[torch.device], Live], device: torch.device):
        self._load, self._device = load, device
        teacher = load(torch.device("cpu"))
        self.shape, self.rotary, self.max_positions = teacher.shape, teacher.rotary, teacher.max_positions
        self._kept = None if device.type == "cpu" else teacher
        if device.type == "cuda":
            for part in chain(teacher.model.parameters(), teacher.model.buffers()):
                part.data = part.data.pin_memory()

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        if self._kept is None:
            return self._load(self._device)(batch, wants)
        with _visiting(self._kept.model, self._device):
            return self._kept(batch, wants)


@contextmanager
def _visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model's weights on the device while the block runs; those that two layers share stay one."""
    tables: list[dict[str, Any]] = [table for one in model.modules() for table in (one._parameters, one._buffers)]
    home = [(table, dict(table)) for table in tables]
    moved: dict[int, Tensor] = {}
    try:
        for table, parts in home:
            for name, part in parts.items():
                if part is not None:
                    if id(part) not in moved:
                        there = part.data.to(device, non_blocking=True)
                        moved[id(part)] = nn.Parameter(there, False) if isinstance(part, nn.Parameter) else there
                    table[name] = moved[id(part)]
        yield
    finally:
        for table, parts in home:
            table.update(parts)
