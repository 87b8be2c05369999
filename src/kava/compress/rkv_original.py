"""rkv_original: the score of R-KV itself (arXiv 2505.24133), with its smoothing and its spared neighbour."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from kava.compress.base import Compressor, Cot
from kava.compress.importance import masked_softmax
from kava.compress.redundancy import unit_keys


@dataclass(frozen=True)
class RKVOriginal(Compressor):
    """S = lambda maxpool7(I) - (1 - lambda) softmax(mean_i C_ij)   [known: R-KV's code, lambda 0.07]

    C is the cosine matrix of the keys, its diagonal 0; in each row i the last column with cos > 0.5 is set to 0, so
    that of several alike keys the newest is not punished. This one does build the N x N matrix, as R-KV does.
    `centred`: C of the keys without their mean over the chain of thought  [ours]
    """

    lambda_: float = 0.07
    threshold: float = 0.5
    window: int = 7
    centred: bool = False

    needs_importance: ClassVar[bool] = True

    def score(self, cot: Cot) -> Tensor:
        assert cot.importance is not None
        if cot.mask.shape[1] == 0:
            return cot.importance  # max_pool1d refuses an empty axis
        smooth = max_pool1d(cot.importance, self.window, stride=1, padding=self.window // 2)
        alike = masked_softmax(self._mean_cosine(cot.keys, cot.mask), cot.mask[:, None, :])
        return self.lambda_ * smooth - (1 - self.lambda_) * alike

    def _mean_cosine(self, keys: Tensor, mask: Tensor) -> Tensor:
        unit = unit_keys(keys, mask, self.centred)
        cosine = unit @ unit.transpose(-1, -2)
        cosine.diagonal(dim1=-2, dim2=-1).zero_()
        column = torch.arange(cosine.shape[-1], device=cosine.device)
        last = torch.where(cosine > self.threshold, column, -1).amax(-1, keepdim=True)
        cosine = cosine.masked_fill(column == last, 0.0)
        return cosine.sum(-2) / mask.sum(1).clamp(min=1)[:, None, None]
