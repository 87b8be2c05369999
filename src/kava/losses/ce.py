"""Cross-entropy at the positions that have targets."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kava.shapes import at_least_float32


def cross_entropy(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int = 4096) -> Tensor:
    """sum_i -log p(target_i | hidden_i); hidden [n, E], targets [n].

    More than `chunk` targets go through the head in pieces whose logits are recomputed in the backward pass: with a
    vocabulary of 150,000 the logits of a large batch would be the largest tensor of the step.
    """

    def piece(rows: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(at_least_float32(head(rows)), labels, reduction="sum")

    if len(targets) <= chunk:
        return piece(hidden, targets)
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.stack([checkpoint(piece, rows, labels, use_reentrant=False) for rows, labels in pieces]).sum()
