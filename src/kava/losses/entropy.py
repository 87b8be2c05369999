"""The entropy of fusion weights, and the term that raises or lowers it."""

from math import log

import torch
from torch import Tensor

from kava.shapes import at_least_float32

TARGETS = ("diverse", "specialized")


def entropy_of(weights: Tensor) -> Tensor:
    """[...] H = - sum_i w_i ln w_i over the last axis, with 0 ln 0 = 0; the gradient stays finite at 0."""
    weights = at_least_float32(weights)
    tiny = torch.finfo(weights.dtype).tiny
    return -(weights * weights.clamp(min=tiny).log()).sum(-1)


def entropy_term(weights: Tensor, target: str, kept: Tensor | None = None) -> Tensor:
    """sum_b of the mean over layers and tokens of  ln S - H (diverse)  or  H (specialized).

    weights [B, L or 1, N or 1, S]; kept [B, N] the real tokens, used if weights differ by token; a sample without
    any counts 0. Divide by the number of samples.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown entropy target {target!r}, known: {TARGETS}")
    entropy = entropy_of(weights)  # [B, L, N]
    each = log(weights.shape[-1]) - entropy if target == "diverse" else entropy
    if kept is None or each.shape[2] == 1:
        return each.mean((1, 2)).sum()
    real = kept[:, None]
    return ((each * real).sum(2) / real.sum(2).clamp(min=1)).mean(1).sum()
