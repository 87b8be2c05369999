"""crop: a window of the chain of thought, the last (the guide's right-crop) or the first M entries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kava.compress.base import Compressor, Cot


@dataclass(frozen=True)
class Crop(Compressor):
    """S_n = n (side last) or -n (side first)."""

    side: str = "last"

    def score(self, cot: Cot) -> Tensor:
        rank = cot.rank.to(cot.keys.dtype)[:, None]
        return rank if self.side == "last" else -rank
