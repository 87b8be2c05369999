"""full: no eviction; the entries are resampled in time onto the latent slots."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.compress.base import Compressed, Compressor, Cot, gather


@dataclass(frozen=True)
class Full(Compressor):
    """Slot i of n = min(M, N_C) lies at u_i = i (N_C - 1) / (n - 1), linear between neighbours  [ours]

    With N_C <= M this is the identity; `rkv.full_slots` raises M to the longest chain of thought instead.
    """

    def compress(self, cot: Cot) -> Compressed:
        mask, keep = cot.mask, cot.keep
        batch, heads, columns, _ = cot.keys.shape
        length = mask.sum(1)
        slots = self.count(mask, keep)
        slot = torch.arange(keep, device=mask.device)
        kept = slot < slots[:, None]
        last, parts = (length - 1).clamp(min=0)[:, None], (slots - 1).clamp(min=1)[:, None]
        place = (slot * last).masked_fill(~kept, 0)  # u_i = place / parts, in whole numbers: exact, and no float64
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)  # column of the n-th real entry
        if columns == 0:
            order = mask.new_zeros(batch, 1, dtype=torch.long)
        low = place // parts
        high = torch.minimum(low + 1, last)
        weight = ((place % parts).to(cot.keys.dtype) / parts)[:, None, :, None]
        kept_h = kept[:, None].expand(-1, heads, -1)

        def at(place: Tensor) -> Tensor:
            return order.gather(1, place)[:, None].expand(-1, heads, -1)

        def mix(entries: Tensor) -> Tensor:
            return (1 - weight) * gather(entries, at(low), kept_h) + weight * gather(entries, at(high), kept_h)

        index = at((2 * place + parts) // (2 * parts)).masked_fill(~kept_h, 0)
        return Compressed(mix(cot.keys), mix(cot.values), kept_h, index)
