"""Weighted means of several teachers' entries, over the teachers that have an entry at each token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kava.errors import ConfigError, ModelError
from kava.fuse.prototypes import compute_routing_weights
from kava.fuse.routers import Router
from kava.shapes import at_least_float32


def shares(weights: Tensor, present: Tensor | None = None) -> Tensor:
    """[B, N, S] w_i p_i / sum_j w_j p_j: the weights over the teachers that have an entry at each token.

    All 0 at tokens where no teacher with a weight is present. weights [B or 1, N or 1, S]; present [B, N, S].
    """
    weights = at_least_float32(weights)
    if present is not None:
        weights = weights.masked_fill(~present, 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def fuse(parts: Sequence[Tensor], weights: Tensor, present: Tensor | None = None) -> Tensor:
    """sum_i a_i x_i with a = `shares(weights, present)`: of one layer, keys and values apart, with the same weights.

    Parts [B, ..., N, D], one per teacher, already in the student's shape; weights [B or 1, N or 1, S]; present
    [B, N, S], None: all. Entries of a teacher that is not present are ignored. One teacher is returned unchanged; where
    none is present the result is 0.
    """
    if len(parts) != weights.shape[-1]:
        raise ModelError(f"{len(parts)} teachers to fuse, but weights for {weights.shape[-1]}")
    first = parts[0]
    if any(part.shape != first.shape for part in parts):
        raise ModelError(
            "teachers of unequal shape cannot be fused: " + ", ".join(str(tuple(part.shape)) for part in parts),
            "bring each into the student's shape first (kava.align)",
        )
    middle = (1,) * (first.dim() - 3)
    total = torch.zeros_like(at_least_float32(first))
    share = shares(weights.to(total.dtype), present)
    for number, part in enumerate(parts):
        part = at_least_float32(part)
        if present is not None:
            exists = present[..., number]
            part = part.masked_fill(~exists.view(exists.shape[0], *middle, exists.shape[1], 1), 0.0)
        weight = share[..., number]
        total = total + weight.view(weight.shape[0], *middle, weight.shape[1], 1) * part
    return total.to(first.dtype)


def fuse_kvs_fixed(
    parts: Sequence[Tensor], weights: Sequence[float] | None = None, present: Tensor | None = None
) -> Tensor:
    """`fuse` with the same weights everywhere, scaled to sum to 1; equal weights by default."""
    values = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
    if min(values, default=0.0) < 0 or sum(values) <= 0:
        raise ConfigError(f"fusion weights {values} must be >= 0, and one of them above 0")
    row = torch.tensor(values, dtype=torch.float64, device=parts[0].device)
    return fuse(parts, (row / row.sum()).to(at_least_float32(parts[0]).dtype)[None, None], present)


def fuse_kvs_similarity(
    parts: Sequence[Tensor],
    query: Tensor,
    prototypes: Tensor,
    temperature: float = 1.0,
    metric: str = "cosine",
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fuse` by similarity of the query [B, d] to each teacher's prototype [S, d] or [S, C, d], and the weights [B, S]."""
    weights = compute_routing_weights(query, prototypes, temperature, metric)
    return fuse(parts, weights[:, None], present), weights


def fuse_kvs_learnable(
    parts: Sequence[Tensor],
    query: Tensor,
    router: Router,
    temperature: float = 1.0,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fuse` by a router's weights for the query [B, d] or [B, N, d], and these weights [B, S] or [B, N, S]."""
    weights = router(query, temperature)
    return fuse(parts, weights[:, None] if query.dim() == 2 else weights, present), weights
