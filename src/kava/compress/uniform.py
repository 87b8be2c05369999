"""uniform: entries at even distances over the chain of thought."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.compress.base import NEVER, Compressor, Cot


@dataclass(frozen=True)
class Uniform(Compressor):
    """Entry floor((i + 1/2) N_C / M) for i < M; all of them where N_C <= M  [ours]"""

    def score(self, cot: Cot) -> Tensor:
        length = cot.mask.sum(1, keepdim=True)
        slot = torch.arange(cot.keep, device=cot.mask.device)
        place = ((2 * slot + 1) * length) // (2 * max(cot.keep, 1))  # [B, M]
        chosen = (cot.rank[:, :, None] == place[:, None]).any(-1) | (length <= cot.keep)
        return torch.where(chosen, 0.0, NEVER)[:, None]
