"""Distances of codes: student and teachers are compared in a trained common space, not entry by entry."""

import torch
from torch import Tensor

from kava.losses.cka import centred
from kava.losses.direction import cosines
from kava.shapes import at_least_float32

LEAST = {"mse": 1, "cosine": 1, "barlow": 2}  # tokens of a sample that counts
OFF = 0.005  # barlow: weight of the entries off the diagonal
SOFT = 1e-5  # barlow: added to variances; a constant code has correlation 0


def z_loss(student: Tensor, target: Tensor, kept: Tensor, kind: str = "mse") -> Tensor:
    """One layer's sum over samples; divide by `z_counted(kept, kind).sum()` x layers. The gradient reaches both sides.

    mse     mean over tokens and z of (s - t)^2
    cosine  mean over tokens of 1 - cos(s, t)
    barlow  (sum_i (1 - C_ii)^2 + 0.005 sum_{i != j} C_ij^2) / z,  C the correlation of s_i and t_j over the tokens of
            this sample, not of the batch, so that batches change nothing. With fewer tokens than z, C cannot be
            diagonal: the second sum then has a floor above 0

    student, target [B, N, z]; kept [B, N].
    """
    if kind not in LEAST:
        raise ValueError(f"unknown distance of codes {kind!r}, known: {tuple(LEAST)}")
    student, target = (at_least_float32(part).masked_fill(~kept[..., None], 0.0) for part in (student, target))
    count = kept.sum(1)
    if kind == "barlow":
        each = _barlow(student, target, kept)
    else:
        token = (student - target).square().mean(-1) if kind == "mse" else 1 - cosines(student, target)
        each = token.masked_fill(~kept, 0.0).sum(1) / count.clamp(min=1)
    return each.masked_fill(~z_counted(kept, kind), 0.0).sum()


def z_counted(kept: Tensor, kind: str = "mse") -> Tensor:
    """[B] the samples with enough tokens to count: one, for barlow two."""
    return kept.sum(1) >= LEAST[kind]


def _barlow(student: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """[B] from codes that are 0 outside `kept`."""
    left, right = (_standard(part, kept) for part in (student, target))
    cross = left.transpose(1, 2) @ right / kept.sum(1).clamp(min=1)[:, None, None]  # [B, z, z]
    own = torch.diagonal(cross, dim1=1, dim2=2)
    off = cross.square().sum((1, 2)) - own.square().sum(1)
    return ((1 - own).square().sum(1) + OFF * off) / cross.shape[-1]


def _standard(codes: Tensor, kept: Tensor) -> Tensor:
    """Mean 0 and variance 1 over a sample's tokens, per dimension."""
    codes, count = centred(codes, kept), kept.sum(1).clamp(min=1)[:, None, None]
    return codes / (codes.square().sum(1, keepdim=True) / count + SOFT).sqrt()
