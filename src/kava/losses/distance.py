"""Elementwise distances of the KV and CODI terms, and the standard deviation that scales them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kava.shapes import at_least_float32

KINDS = {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss, "l1": F.l1_loss}


def distance(student: Tensor, teacher: Tensor, kind: str, detach: bool = True) -> Tensor:
    """Elementwise |s - t|, (s - t)^2 or smooth L1 (beta 1), in float32 or better.

    The teacher gets no gradient unless `detach` is False, for a projection that is trained.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach() if detach else teacher)
    if kind not in KINDS:
        raise ValueError(f"unknown distance {kind!r}, known: {tuple(KINDS)}")
    return KINDS[kind](student, teacher, reduction="none")


def masked_std(teacher: Tensor, mask: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Unbiased standard deviation over `dims` of the True elements, keepdim; 1 if fewer than two are True."""
    teacher = at_least_float32(teacher.detach())
    weight = mask.expand_as(teacher).to(teacher.dtype)
    count = weight.sum(dims, keepdim=True)
    mean = (teacher * weight).sum(dims, keepdim=True) / count.clamp(min=1)
    square = ((teacher - mean).square() * weight).sum(dims, keepdim=True)
    std = (square / (count - 1).clamp(min=1)).sqrt()
    return torch.where((count > 1) & (std > 0), std, 1.0)


def standardized(entries: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """(x - mean) / std of each dimension, in float32 or better; `inverse` is 1 / std, or 0 to leave a dimension out.

    With the moments of the target on both sides, neither a constant in a dimension nor its unit changes a distance.
    """
    return (at_least_float32(entries) - mean) * inverse


def scaled(student: Tensor, teacher: Tensor, kind: str, std: Tensor | None, detach: bool = True) -> Tensor:
    """distance / std, and mse / std^2: the loss is divided, not its argument  [known: parents' code]"""
    loss = distance(student, teacher, kind, detach)
    if std is None:
        return loss
    return loss / (std.square() if kind == "mse" else std)
