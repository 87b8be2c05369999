"""How unlike the other entries each chain-of-thought key is."""

from torch import Tensor

from kava.compress.importance import masked_softmax
from kava.shapes import at_least_float32


def redundancy(keys: Tensor, mask: Tensor) -> Tensor:
    """R [B, H, N], sums to 1 over the real entries; high = unlike the others = worth keeping  [known]

        R = softmax( - (1/N_C) sum_{j != i} cos(k_i, k_j) )

    No N x N matrix: sum_j cos(i, j) = u_i . sum_j u_j with unit keys u.
    """
    unit = unit_keys(keys, mask)
    total = unit.sum(2, keepdim=True)
    cosines = (unit * total).sum(-1) - (unit * unit).sum(-1)  # the diagonal is left out
    mean = cosines / mask.sum(1).clamp(min=1)[:, None, None]
    return masked_softmax(-mean, mask[:, None, :])


def unit_keys(keys: Tensor, mask: Tensor) -> Tensor:
    """Keys of length 1 in float32 or better, 0 on padding."""
    keys = at_least_float32(keys).masked_fill(~mask[:, None, :, None], 0.0)
    return keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-8)
