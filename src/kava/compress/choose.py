"""One choice of positions per sample, from the scores of all layers and heads: what is kept where heads cannot differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kava.compress.base import NEVER, Compressor, Cot, Samples, select


@torch.no_grad()
def sample_positions(
    compressor: Compressor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    importance: Sequence[Tensor] | None,
    mask: Tensor,
    keep: int,
    samples: Samples | None = None,
) -> tuple[Tensor, Tensor]:
    """index [B, 1, M] the kept columns in time order, kept [B, 1, M] bool: which slots hold one.

        S_n = mean_l mean_h S_n[l, h], then the M largest (the earlier one of equals)  [ours]

    keys, values [B, H, N, D] and importance [B, H, N] of every layer; mask [B, N]. H and D may differ between layers.
    N_C < M leaves the last slots empty (index 0).
    """
    if type(compressor).score is Compressor.score:
        raise ValueError(f"{type(compressor).__name__} makes entries, it does not choose among positions")
    if compressor.needs_importance and importance is None:
        raise ValueError(f"{type(compressor).__name__} needs the importance of each entry")
    if not keys:
        raise ValueError("there is no layer to take scores from")
    looked = [None] * len(keys) if importance is None else importance
    total = torch.zeros(mask.shape, device=mask.device)
    for key, value, weight in zip(keys, values, looked, strict=True):
        score = compressor.score(Cot(key, value, mask, weight, keep, samples))
        total = total + score.mean(1)
    mean = (total / len(keys)).masked_fill(~compressor.eligible(mask, samples), NEVER)[:, None]
    found = select(mean[..., None], mean[..., None], mean, keep)
    return found.index, found.kept
