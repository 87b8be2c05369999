"""rkv: the paper's score, importance and redundancy mixed."""

from dataclasses import dataclass

from torch import Tensor

from kava.compress.base import Compressor, Cot
from kava.compress.redundancy import redundancy


@dataclass(frozen=True)
class RKV(Compressor):
    """S = lambda I + (1 - lambda) R, top M per sample, layer and head; lambda = 0.1  [known]

    `centred`: R of the keys without their mean over the chain of thought  [ours]
    """

    lambda_: float = 0.1
    centred: bool = False

    @property
    def needs_importance(self) -> bool:  # type: ignore[override]
        return self.lambda_ > 0

    def score(self, cot: Cot) -> Tensor:
        novelty = (1 - self.lambda_) * redundancy(cot.keys, cot.mask, self.centred)
        return novelty if cot.importance is None else self.lambda_ * cot.importance + novelty
