"""Sequences of different lengths: padded and masked, or mapped token by token; truncated only by `truncate`."""

import torch
from torch import Tensor

from kava.align.tokens import matched
from kava.errors import ModelError


def create_attention_mask(lengths: Tensor, n: int | None = None) -> Tensor:
    """[B, n] bool, True for the first `lengths[b]` columns; n defaults to the longest."""
    longest = int(lengths.max()) if lengths.numel() else 0
    width = longest if n is None else n
    if longest > width:
        raise ModelError(f"a text of {longest} tokens does not fit into a mask of {width}", "nothing is cut here")
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def pad_to_length(kv: Tensor, n: int, dim: int = 2) -> tuple[Tensor, Tensor]:
    """kv [B, ..., T, ...] zero-padded to n tokens on the right, and the mask [B, n] of the real ones."""
    length = kv.shape[dim]
    if length > n:
        raise ModelError(f"{length} tokens do not fit into {n}", "pad to the longer one; truncate() cuts, by that name")
    shape = list(kv.shape)
    shape[dim] = n - length
    padded = torch.cat([kv, kv.new_zeros(shape)], dim=dim)
    mask = torch.arange(n, device=kv.device) < length
    return padded, mask.expand(kv.shape[0], n)


def apply_mask_to_kv(kv: Tensor, mask: Tensor, dim: int = 2) -> Tensor:
    """kv with zeros at padding tokens of `dim`; mask [B, T]."""
    shape = [1] * kv.dim()
    shape[0], shape[dim] = mask.shape
    return kv.masked_fill(~mask.view(shape), 0)


def apply_soft_alignment(kv: Tensor, weights: Tensor, dim: int = 2) -> Tensor:
    """sum_j weights[b, i, j] kv[b, .., j, ..]: the entries of teacher tokens j of `dim`, mapped to student tokens i.

    kv has three dimensions or more; weights [B, N_s, N_t], or [N_s, N_t] for all samples. Computed in the wider of the
    two types.
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
    """Teacher and student with the same number of tokens, and their masks [B, N].

    Without weights the shorter one is padded. With weights [B, N_s, N_t] the teacher is mapped to the student's tokens;
    its mask is then True for the matched ones.
    """
    if weights is None:
        n = max(teacher.shape[dim], student.shape[dim])
        teacher, teacher_mask = pad_to_length(teacher, n, dim)
        student, student_mask = pad_to_length(student, n, dim)
        return teacher, student, teacher_mask, student_mask
    teacher_mask = matched(weights).expand(student.shape[0], -1)
    return apply_soft_alignment(teacher, weights, dim), student, teacher_mask, torch.ones_like(teacher_mask)
