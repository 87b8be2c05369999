"""How unlike the other entries each chain-of-thought key is."""

from torch import Tensor

from kava.compress.importance import masked_softmax
from kava.shapes import at_least_float32


def redundancy(keys: Tensor, mask: Tensor, centred: bool = False) -> Tensor:
    """R [B, H, N], sums to 1 over the real entries; high = unlike the others = worth keeping  [known]

        R = softmax( - (1/N_C) sum_{j != i} cos(k_i, k_j) )

    No N x N matrix: sum_j cos(i, j) = u_i . sum_j u_j with unit keys u. `centred`: of keys without their mean  [ours]
    """
    unit = unit_keys(keys, mask, centred)
    total = unit.sum(2, keepdim=True)
    cosines = (unit * total).sum(-1) - (unit * unit).sum(-1)  # the diagonal is left out
    mean = cosines / mask.sum(1).clamp(min=1)[:, None, None]
    return masked_softmax(-mean, mask[:, None, :])


def unit_keys(keys: Tensor, mask: Tensor, centred: bool = False) -> Tensor:
    """Keys of length 1 in float32 or better, 0 on padding.

    `centred`: less their mean over the chain of thought, of each sample, head and dimension. Keys of pretrained models
    can be a large constant with little around it; then all their cosines are near 1, and what is left of R is rounding.
    """
    real = mask[:, None, :, None]
    keys = at_least_float32(keys).masked_fill(~real, 0.0)
    if centred:
        mean = keys.sum(2, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None, None]
        keys = (keys - mean).masked_fill(~real, 0.0)
    return keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-8)
