"""Numbers of an update that stay on the device until somebody wants them: every read waits for the device's queue."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kava.losses import Term

Sums = defaultdict[str, Any]  # numbers, or tensors that have not been read


@dataclass(frozen=True)
class Computed:
    """A piece's share of the loss, its terms and its examples."""

    loss: Tensor
    terms: list[Term]
    example_id: Tensor

    @classmethod
    def of(cls, loss: Tensor, terms: list[Term], example_id: Tensor) -> "Computed":
        """Without their graphs."""
        return cls(loss.detach(), [replace(term, total=term.total.detach()) for term in terms], example_id)


def not_finite(pieces: list[Computed]) -> Computed | None:
    """The first piece whose loss is not finite; one read where all are."""
    if torch.stack([piece.loss for piece in pieces]).isfinite().all():
        return None
    return next(piece for piece in pieces if not piece.loss.isfinite())


def wide(total: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return total if total.device.type == "mps" else total.double()


def read(sums: Sums) -> Sums:
    """The numbers of `sums`, all of them in one read."""
    tensors = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
    values = torch.stack(list(tensors.values())).tolist() if tensors else []
    return Sums(float, {**sums, **dict(zip(tensors, values, strict=True))})
