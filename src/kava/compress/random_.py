"""random: M entries drawn evenly, the same for all layers and heads of a sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.compress.base import Compressor, Cot


@dataclass(frozen=True)
class Random(Compressor):
    """S_n uniform in [0, 1), drawn from (seed, epoch, example id) and never from the batch  [ours]"""

    def score(self, cot: Cot) -> Tensor:
        score = torch.zeros(cot.mask.shape)
        real = cot.mask.cpu()
        for row, generator in enumerate(cot.require_samples().generators()):
            score[row, real[row]] = torch.rand(int(real[row].sum()), generator=generator)
        return score.to(cot.mask.device)[:, None]
