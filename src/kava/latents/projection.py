"""prj: from a hidden state back to an input embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear - GELU - Linear - LayerNorm, all of model width  [known: parents' code]."""

    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))

        nn.init.constant_(self.layers[-1].weight, scale)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden.to(self.layers[0].weight.dtype))


def make_projection(width: int, use_projection: bool, scale: float = 1.0) -> nn.Module:
    """`loss.use_projection` off leaves the hidden state as it is. `scale` is where LayerNorm's gain starts."""
    return Projection(width, scale) if use_projection else nn.Identity()


@torch.no_grad()
def residual(before: Tensor, after: Tensor) -> Tensor:
    """||after - before|| / ||before||: what the last Jacobi round still changed."""
    return (after - before).norm() / before.norm().clamp(min=1e-12)
