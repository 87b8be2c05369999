"""Attention masks and positions of teacher, latents, answer and generation. Pure tensor functions."""

import torch
from torch import Tensor


def positions(mask: Tensor, offset: Tensor | None = None) -> Tensor:
    """[B, T] position of each real token in its own sequence, padding not counted; `offset` [B] tokens came before."""
    position = (mask.cumsum(1) - 1).clamp(min=0)
    return position if offset is None else position + offset[:, None]


def causal_mask(mask: Tensor, prefix: Tensor | None = None) -> Tensor:
    """[B, 1, T, P + T] bool: token i sees the real prefix and the real tokens up to itself."""
    order = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    visible = order & mask[:, None, :]
    if prefix is not None:
        visible = torch.cat([prefix[:, None, :].expand(-1, mask.shape[1], -1), visible], dim=2)
    return _with_diagonal(visible)


def tree_mask(mask: Tensor, branch: Tensor) -> Tensor:
    """[B, 1, T, T] bool for several continuations of one trunk: a token sees the trunk (branch 0) and its own branch.

    mask [B, T]; branch [B, T] the branch number of each column, the trunk's columns first.
    """
    order = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    related = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return _with_diagonal(order & related & mask[:, None, :])


def within_window(mask: Tensor, window: int) -> Tensor:
    """The mask of a layer with an attention window: of the keys that a token sees in `mask` [B, 1, T, P + T], the latest
    `window`, itself among them.

    Keys stand in the order of their positions along the trunk and along each branch, so this counts positions in the
    sample: neither padding nor another branch takes a place in the window.
    """
    if mask.shape[-1] <= window:
        return mask
    ahead = mask.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1)  # keys seen from this one to the latest
    return mask & (ahead <= window)


def _with_diagonal(visible: Tensor) -> Tensor:
    """[B, 1, T, P + T] where padding sees itself: no row is empty, since its output would be NaN."""
    rows, columns = visible.shape[1:]
    diagonal = torch.eye(rows, dtype=torch.bool, device=visible.device)
    return (visible | torch.nn.functional.pad(diagonal, (columns - rows, 0)))[:, None]


def previous(mask: Tensor) -> Tensor:
    """[B, T] column of the last real token before each column (0 if there is none)."""
    column = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    latest = torch.where(mask, column, 0).cummax(dim=1).values
    return torch.nn.functional.pad(latest[:, :-1], (1, 0))


def pick(hidden: Tensor, column: Tensor) -> Tensor:
    """hidden [B, T, E] at column [B] -> [B, E]."""
    return hidden[torch.arange(len(column), device=hidden.device), column]
