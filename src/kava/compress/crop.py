"""crop: a window of the chain of thought, the last (the guide's right-crop) or the first M entries."""

from dataclasses import dataclass

from torch import Tensor

from kava.compress.base import Compressor, Cot


@dataclass(frozen=True)
class Crop(Compressor):
    """S_n = n (side last) or -n (side first)."""

    side: str = "last"

    def __post_init__(self) -> None:
        if self.side not in ("last", "first"):
            raise ValueError(f"crop keeps the last or the first entries, not {self.side!r}")

    def score(self, cot: Cot) -> Tensor:
        rank = cot.rank.float()[:, None]
        return rank if self.side == "last" else -rank
