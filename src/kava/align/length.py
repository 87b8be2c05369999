"""Texts of different numbers of tokens: padded and masked, or carried over token by token; never cut unless told to."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.align.tokens import matched
from kava.errors import ModelError


def create_attention_mask(lengths: Tensor, n: int | None = None) -> Tensor:
    """[B, n] bool, True for the first `lengths[b]` columns; n is the longest if it is not given."""
    longest = int(lengths.max()) if lengths.numel() else 0
    width = longest if n is None else n
    if longest > width:
        raise ModelError(f"a text of {longest} tokens does not fit into a mask of {width}", "nothing is cut here")
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def pad_to_length(kv: Tensor, n: int, dim: int = 2) -> tuple[Tensor, Tensor]:
    """kv [B, ..., T, ...] with zeros behind its T tokens up to n, and the mask [B, n] of the real ones."""
    length = kv.shape[dim]
    if length > n:
        raise ModelError(f"{length} tokens do not fit into {n}", "pad to the longer one; truncate() cuts, by that name")
    shape = list(kv.shape)
    shape[dim] = n - length
    padded = torch.cat([kv, kv.new_zeros(shape)], dim=dim)
    mask = torch.arange(n, device=kv.device) < length
    return padded, mask.expand(kv.shape[0], n)


def apply_mask_to_kv(kv: Tensor, mask: Tensor, dim: int = 2) -> Tensor:
    """kv with zeros at the tokens of `dim` that are not real; mask [B, T]."""
    shape = [1] * kv.dim()
    shape[0], shape[dim] = mask.shape
    return kv.masked_fill(~mask.view(shape), 0)


def apply_soft_alignment(kv: Tensor, weights: Tensor, dim: int = 2) -> Tensor:
    """sum_j weights[b, i, j] kv[b, .., j, ..]: what teacher tokens j of `dim` hold, carried to student tokens i.

    kv has three dimensions or more; weights [B, N_s, N_t], or [N_s, N_t] for all samples. Computed in the better of both
    types.
    """
    work = torch.promote_types(kv.dtype, weights.dtype)
    front = kv.to(work).movedim(dim, 1)
    weights = weights.to(work).expand(kv.shape[0], -1, -1)
    return (weights @ front.flatten(2)).view(*weights.shape[:2], *front.shape[2:]).movedim(1, dim)


def truncate(kv: Tensor, n: int, dim: int = 2) -> Tensor:
    """The first n tokens."""
    return kv.narrow(dim, 0, min(n, kv.shape[dim]))


def align_sequence_lengths(
    teacher: Tensor, student: Tensor, weights: Tensor | None = None, dim: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both with the same number of tokens, and their masks [B, N].

    Without weights the shorter one is padded. With weights [B, N_s, N_t] the teacher is carried to the student's tokens;
    its mask then says which of these have a partner.
    """
    if weights is None:
        n = max(teacher.shape[dim], student.shape[dim])
        (theirs, their_mask), (mine, my_mask) = (pad_to_length(part, n, dim) for part in (teacher, student))
        return theirs, mine, their_mask, my_mask
    found = matched(weights).expand(student.shape[0], -1)
    return apply_soft_alignment(teacher, weights, dim), student, found, torch.ones_like(found)
