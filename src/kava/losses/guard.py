"""The guard against a collapsed projector, which minimises the loss by mapping every entry to the same vector; and against
one that grows, which a loss of directions leaves free to do."""

import math

import torch
from torch import Tensor

from kava.losses.cka import centred
from kava.shapes import at_least_float32

GUARDS = {"variance": math.inf, "band": 2.0}  # projector.guard: how often the reference they may vary at most


def variance_guard(projected: Tensor, kept: Tensor, reference: Tensor, most: float = math.inf) -> Tensor:
    """sum_b mean_d relu(1 - r) + relu(r / most - 1),  r = std_{b,d} / reference_d: 0 if a sample's kept entries vary as
    much as the reference, and not more than `most` times as much.

    std is the unbiased one over the kept entries of a sample; a sample with fewer than two counts 0, and so does a
    dimension whose reference is 0. projected [B, M, d]; kept [B, M]; reference [d], no gradient.
    """
    ratio, counted = _ratio(projected, kept, reference)
    apart = torch.relu(1 - ratio)
    if most < math.inf:
        apart = apart + torch.relu(ratio / most - 1)
    return apart.masked_fill(~counted, 0.0).mean(1).sum()


def variation(projected: Tensor, kept: Tensor, reference: Tensor) -> Tensor:
    """sum_b mean_d std_{b,d} / reference_d, over the same samples and dimensions: the ratio that the guard keeps up."""
    ratio, counted = _ratio(projected, kept, reference)
    return ratio.masked_fill(~counted, 0.0).mean(1).sum()


def _ratio(projected: Tensor, kept: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """std_{b,d} / reference_d [B, d], and where it is defined."""
    projected, reference = at_least_float32(projected), at_least_float32(reference.detach())
    count = kept.sum(1)[:, None]
    square = centred(projected, kept).square().sum(1)  # [B, d]
    tiny = torch.finfo(projected.dtype).tiny
    std = (square / (count - 1).clamp(min=1)).clamp(min=tiny).sqrt()  # the gradient of the root at 0 is infinite
    return std / torch.where(reference > 0, reference, 1.0), (count > 1) & (reference > 0)
