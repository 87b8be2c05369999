"""A loss is a sum of terms, and a term is a sum and what it has to be divided by."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """weight * total / count. `total` is a sum over this micro-batch; the trainer divides by the count of
    the whole update window (all micro-batches, all ranks), so that 1x8 = 2x4 = 8x1  [ours]"""

    name: str
    total: Tensor
    count: float
    weight: float = 1.0

    def value(self, count: float | None = None) -> Tensor:
        """The unweighted mean; 0, never NaN, where nothing was counted."""
        denominator = self.count if count is None else count
        return self.total / denominator if denominator else torch.zeros_like(self.total)


def add(terms: list[Term], counts: dict[str, float] | None = None) -> Tensor:
    """sum_i weight_i * total_i / count_i, with the counts of the update window where they are given."""
    values = [term.value() if counts is None else term.value(counts[term.name]) for term in terms]
    return torch.stack([term.weight * value for term, value in zip(terms, values, strict=True)]).sum()
