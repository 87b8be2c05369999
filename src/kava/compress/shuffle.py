"""Controls wrapped around any compressor: right entries in the wrong order, or of the wrong question."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kava.compress.base import Compressed, Compressor, Cot, Samples

_SALT = 1  # the permutation is independent of what the wrapped compressor draws


@dataclass(frozen=True)
class _Wrapper(Compressor):
    inner: Compressor = None  # type: ignore[assignment]

    @property
    def needs_importance(self) -> bool:  # type: ignore[override]
        return self.inner.needs_importance

    def eligible(self, mask: Tensor, samples: Samples | None) -> Tensor:
        return self.inner.eligible(mask, samples)

    def count(self, mask: Tensor, keep: int, samples: Samples | None = None) -> Tensor:
        return self.inner.count(mask, keep, samples)

    def unchanged(self, cot: Cot) -> Compressed:
        return self.inner(cot.keys, cot.values, cot.mask, cot.importance, cot.keep, samples=cot.samples)


@dataclass(frozen=True)
class ShuffleTime(_Wrapper):
    """The seeds' E5: one permutation of the kept entries per sample, other than the identity, the same for all
    layers, heads, K and V. Fewer than two entries stay as they are."""

    @property
    def crosses_samples(self) -> bool:  # type: ignore[override]
        return self.inner.crosses_samples

    def compress(self, cot: Cot) -> Compressed:
        if cot.samples is None:
            raise ValueError("ShuffleTime needs samples=Samples(...) to know what to draw from")
        out = self.unchanged(cot)
        order = shuffled_order(self.count(cot.mask, cot.keep, cot.samples), cot.keep, cot.samples)
        index = order[:, None].expand_as(out.index)
        wide = index[..., None].expand_as(out.keys)
        return Compressed(out.keys.gather(2, wide), out.values.gather(2, wide), out.kept, out.index.gather(2, index))


def shuffled_order(counts: Tensor, slots: int, samples: Samples) -> Tensor:
    """[B, slots] each sample's permutation of its first `counts` slots."""
    drawn = zip(counts.tolist(), samples.generators(_SALT), strict=True)
    return torch.stack([derangement_like(n, slots, generator) for n, generator in drawn]).to(counts.device)


def derangement_like(count: int, slots: int, generator: torch.Generator) -> Tensor:
    """A permutation of the first `count` slots that is not the identity (if two or more), rest in place."""
    order = torch.arange(slots)
    while count > 1 and bool((order[:count] == torch.arange(count)).all()):
        order[:count] = torch.randperm(count, generator=generator)
    return order


@dataclass(frozen=True)
class ShuffleExamples(_Wrapper):
    """Every sample gets the entries of its neighbour in the batch: right scale, wrong content  [ours]"""

    crosses_samples: ClassVar[bool] = True

    def compress(self, cot: Cot) -> Compressed:
        if len(cot.mask) < 2:
            raise ValueError("ShuffleExamples needs a batch of at least two samples")
        out = self.unchanged(cot)
        return Compressed(*(part.roll(1, dims=0) for part in (out.keys, out.values, out.kept, out.index)))

    def count(self, mask: Tensor, keep: int, samples: Samples | None = None) -> Tensor:
        return self.inner.count(mask, keep, samples).roll(1, dims=0)
