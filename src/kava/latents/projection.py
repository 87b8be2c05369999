"""prj: from a hidden state back to an input embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear - GELU - Linear - LayerNorm, all of model width  [known: parents' code]"""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden.to(next(self.parameters()).dtype))


def make_projection(width: int, use_projection: bool) -> nn.Module:
    """`loss.use_projection` off leaves the hidden state as it is."""
    return Projection(width) if use_projection else nn.Identity()


@torch.no_grad()
def residual(before: Tensor, after: Tensor) -> Tensor:
    """||after - before|| / ||before||: what the last Jacobi round still changed."""
    return (after - before).norm() / before.norm().clamp(min=1e-12)
