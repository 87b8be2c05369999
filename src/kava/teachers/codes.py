"""Z-space: codes of keys and values together, in which models of any shape can be compared.

    z = Linear(LayerNorm([k, v]))        one encoder per student layer, for the student and for every teacher

Both sides are trained towards each other; a guard on their variation keeps the codes from collapsing into a constant.
"""

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kava.align import flatten_heads
from kava.teachers.base import KVShape


class Coder(nn.Module):
    def __init__(self, student: KVShape, teachers: Sequence[KVShape], size: int):
        super().__init__()
        self.own = nn.ModuleList(_encoder(student, size) for _ in range(student.num_layers))
        self.others = nn.ModuleList(
            nn.ModuleList(_encoder(shape, size) for _ in range(student.num_layers)) for shape in teachers
        )

    def freeze_unused(self, layers: Collection[int]) -> None:
        """Encoders of other student layers would wait for a gradient that never comes."""
        for encoders in (self.own, *self.others):
            for layer, encoder in enumerate(encoders):  # type: ignore[arg-type]
                if layer not in layers:
                    encoder.requires_grad_(False)

    def forward(self, keys: list[Tensor], values: list[Tensor], teacher: int | None = None) -> list[Tensor]:
        """Keys (not rotated) and values [B, H, N, D] per layer of the student -> codes [B, 1, N, z].

        teacher: the same of this one, at the student's tokens and layers.
        """
        encoders = cast(nn.ModuleList, self.own if teacher is None else self.others[teacher])
        codes = []
        for encoder, key, value in zip(encoders, keys, values, strict=True):
            pair = torch.cat([flatten_heads(key), flatten_heads(value)], dim=-1)
            codes.append(encoder(pair.to(encoder[1].weight.dtype))[:, None])  # type: ignore[index]
        return codes


def _encoder(shape: KVShape, size: int) -> nn.Sequential:
    width = 2 * shape.layer_size
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
