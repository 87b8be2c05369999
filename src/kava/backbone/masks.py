"""Masks and positions, built in one place for teacher, latents, answer and generation. Pure tensor functions."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(mask: Tensor, offset: Tensor | None = None) -> Tensor:
    """[B, T] position of each real token in its own sequence, padding not counted; `offset` [B] tokens came before."""
    place = (mask.cumsum(1) - 1).clamp(min=0)
    return place if offset is None else place + offset[:, None]


def causal_mask(mask: Tensor, prefix: Tensor | None = None) -> Tensor:
    """[B, 1, T, P + T] bool: token i sees the real prefix and the real tokens up to itself."""
    order = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    seen = order & mask[:, None, :]
    if prefix is not None:
        seen = torch.cat([prefix[:, None, :].expand(-1, mask.shape[1], -1), seen], dim=2)
    return _self_seeing(seen)


def tree_mask(mask: Tensor, branch: Tensor) -> Tensor:
    """[B, 1, T, T] bool for several continuations of one trunk: a token sees the trunk (branch 0) and its own branch.

    mask [B, T]; branch [T] the branch number of each column, the trunk's columns first.
    """
    order = torch.ones(len(branch), len(branch), dtype=torch.bool, device=mask.device).tril()
    related = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
    return _self_seeing(order & related & mask[:, None, :])


def _self_seeing(seen: Tensor) -> Tensor:
    """Padding sees itself, so that no row is empty: its output is never read, but it must not be NaN."""
    rows, columns = seen.shape[1:]
    itself = torch.eye(rows, dtype=torch.bool, device=seen.device)
    return (seen | torch.nn.functional.pad(itself, (columns - rows, 0)))[:, None]


def previous(mask: Tensor) -> Tensor:
    """[B, T] column of the last real token before each column (0 where there is none)."""
    column = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    latest = torch.where(mask, column, 0).cummax(dim=1).values
    return torch.nn.functional.pad(latest[:, :-1], (1, 0))


def pick(hidden: Tensor, column: Tensor) -> Tensor:
    """hidden [B, T, E] at column [B] -> [B, E]."""
    return hidden[torch.arange(len(column), device=hidden.device), column]
