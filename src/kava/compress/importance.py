"""How much the answer looks at each chain-of-thought entry."""

import torch
from torch import Tensor

from kava.shapes import at_least_float32, soft_cap


def importance(
    queries: Tensor, keys: Tensor, answer_mask: Tensor, mask: Tensor, scale: float, cap: float | None = None
) -> Tensor:
    """I [B, H, N], sums to 1 over the real entries of each sample and head (all 0 where there are none).

    I = mean_a softmax_n( max_r q[a, h, r] . k[n, h] * scale )   a: answer tokens, r: query heads of a group  [known]

    The group maximum is taken on the logits, capped where the model caps its own; the softmax runs over the
    chain-of-thought columns only, and over all of them also in layers with an attention window.
    queries [B, H*R, A, D] of the answer tokens as inputs; keys [B, H, N, D]; answer_mask [B, A]; mask [B, N].
    """
    batch, heads = keys.shape[:2]
    grouped = at_least_float32(queries).reshape(batch, heads, -1, *queries.shape[2:])  # [B, H, R, A, D]
    logits = torch.einsum("bhrad,bhnd->bhran", grouped, at_least_float32(keys)).amax(2) * scale
    logits = soft_cap(logits, cap)
    attention = masked_softmax(logits, mask[:, None, None, :])
    real = answer_mask[:, None, :, None]
    return attention.masked_fill(~real, 0.0).sum(2) / real.sum(2).clamp(min=1)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of the True columns; all 0 where no column is True."""
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1) * mask
