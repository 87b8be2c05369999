"""steps: the tokens that carry each step's result, in order (ours)."""

from dataclasses import dataclass

from torch import Tensor

from kava.compress.base import Compressor, Cot, Samples


@dataclass(frozen=True)
class Steps(Compressor):
    """Only tokens inside a step's result may be kept; the first M of them, left-aligned with the latents  [ours]

    The encoder records these spans. A data set without any is refused when training starts, not passed over.
    """

    def eligible(self, mask: Tensor, samples: Samples | None) -> Tensor:
        if samples is None:
            raise ValueError("Steps needs samples=Samples(...) to know the spans of the results")
        return mask & samples.result

    def score(self, cot: Cot) -> Tensor:
        return -cot.rank.float()[:, None]
