"""Teachers that are on the device only during their own passes.

With a GPU their weights stay in pinned host memory and are never copied back, since they are frozen. On a CPU they are
loaded from disk for every pass, so that memory holds the student and one teacher.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.live import LiveTeacher


class OffloadedTeacher:
    """A live teacher whose weights are off the device between passes; `load(device)` loads it."""

    def __init__(self, load: Callable[[torch.device], LiveTeacher], device: torch.device):
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
        with _on_device(self._kept.model, self._device):
            return self._kept(batch, wants)


@contextmanager
def _on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts the model's weights on the device while the block runs; shared weights stay shared."""
    tables: list[dict[str, Any]] = [table for m in model.modules() for table in (m._parameters, m._buffers)]
    originals = [(table, dict(table)) for table in tables]
    moved: dict[int, Tensor] = {}
    try:
        for table, parts in originals:
            for name, part in parts.items():
                if part is not None:
                    if id(part) not in moved:
                        copy = part.data.to(device, non_blocking=True)
                        moved[id(part)] = nn.Parameter(copy, False) if isinstance(part, nn.Parameter) else copy
                    table[name] = moved[id(part)]
        yield
    finally:
        for table, parts in originals:
            table.update(parts)
