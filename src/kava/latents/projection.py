"""prj: the map from a hidden state to an input embedding."""

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
    """The projection, or the identity without `loss.use_projection`."""
    return Projection(width) if use_projection else nn.Identity()


@torch.no_grad()
def residual(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """||after - before||^2 and ||before||^2; the root of their ratio is the relative change in the last Jacobi round."""
    return (after - before).square().sum(), before.square().sum()
