"""loss.kv_scale dim: keys and values on a scale of their own in each dimension, by moments of the teacher's kept entries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kava.errors import DataError
from kava.losses.distance import standardized
from kava.objective.compare import Comparison, KVComparison
from kava.objective.moments import Moments

Place = tuple[str, int]  # k or v, and the compared layer


class DimScale(nn.Module):
    """comparison -> the same with both sides minus the targets' mean, over their standard deviation.

    mean, inverse [parts, compared layers, heads, 1, D]: moments by part (K, V), layer, head and dimension, measured before
    the first update (`objective/calibration.py`), then fixed and saved with the run. Until then they are not a number, and
    so is the loss. inverse is 1 / std, and 0 in a dimension in which no target varies: it teaches nothing, and dividing
    by what rounding leaves there would make noise of it.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(self, compare: Comparison):
        super().__init__()
        self.kinds = compare.kinds
        heads, size = compare.sizes[0]
        for name in ("mean", "inverse"):
            shape = (len(self.kinds), len(compare.sizes), heads, 1, size)
            self.register_buffer(name, torch.full(shape, torch.nan))

    def forward(self, pair: KVComparison) -> KVComparison:
        place = self.kinds.index(pair.kind), pair.layer
        student, target = (standardized(x, self.mean[place], self.inverse[place]) for x in (pair.student, pair.target))
        return replace(pair, student=student, target=target)

    def set(self, measured: Mapping[Place, Sequence[Moments]]) -> int:
        """Takes the moments of each head at each place; the smallest number of vectors that one was taken from."""
        fewest = min((moments.count for heads in measured.values() for moments in heads), default=0)
        if fewest < 2:
            raise DataError(
                f"loss.kv_scale is dim, but the first training examples have only {fewest} entries of a chain of thought "
                "that are kept, too few for a mean and a standard deviation",
                "set loss.kv_scale=layer, or dataset.drop_last_step=false, or put longer examples first",
            )
        for (kind, layer), heads in measured.items():
            place = self.kinds.index(kind), layer
            self.mean[place] = torch.stack([moments.mean for moments in heads])[:, None].to(self.mean)
            self.inverse[place] = torch.stack([_inverse(moments) for moments in heads])[:, None].to(self.mean)
        return fewest


def _inverse(moments: Moments) -> Tensor:
    """1 / std, or 0 where the vectors differ by less than half a step of their own type's rounding."""
    varies = moments.std > moments.rounding * moments.mean.abs() / 2
    return torch.where(varies, 1 / moments.std, 0.0)
