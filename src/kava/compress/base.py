"""What every compressor shares: the call, the inputs of its score, and the top-M selection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Compressed:
    """The kept entries in time order, entry j left-aligned with latent j; `kept` False marks an empty slot.

    keys, values [B, H, M, D]; kept [B, H, M] bool; index [B, H, M] column of each entry (0 in empty slots).
    """

    keys: Tensor
    values: Tensor
    kept: Tensor
    index: Tensor


@dataclass(frozen=True)
class Samples:
    """Example ids and step results, which some compressors need. Draws depend on these, never on the other samples."""

    example_id: Tensor  # [B] long
    result: Tensor  # [B, N] bool, True on tokens that carry a step's result
    seed: int = 0
    epoch: int = 0

    def generators(self, salt: int = 0) -> list[torch.Generator]:
        """One random generator per sample, the same on every device and in every batch."""
        ids = self.example_id.tolist()
        return [_generator(self.seed, self.epoch, example_id, salt) for example_id in ids]


def _generator(*numbers: int) -> torch.Generator:
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64: neighbouring ids must give unrelated draws
        state = (state + number * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)


@dataclass(frozen=True)
class Cot:
    """One layer's chain of thought and how many entries are kept of it; shapes as in Compressor."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    importance: Tensor | None
    keep: int
    samples: Samples | None

    def require_samples(self) -> Samples:
        """The samples, for scores that cannot do without them."""
        if self.samples is None:
            raise ValueError("this compressor needs samples=Samples(...)")
        return self.samples

    @property
    def rank(self) -> Tensor:
        """[B, N] 0-based position among the real entries (meaningless on padding)."""
        return self.mask.cumsum(1) - 1


@dataclass(frozen=True)
class Compressor:
    """(keys, values [B,H,N,D], mask [B,N], importance [B,H,N] | None, keep) -> Compressed.

    A variant is a frozen dataclass in a file of its own; its fields are its settings. It overrides `score`, or
    `compress` where entries are made rather than chosen. `samples` is given by keyword and may be ignored.
    """

    needs_importance: ClassVar[bool] = False
    crosses_samples: ClassVar[bool] = False  # True: exempt from batch invariance, needs two samples

    def __call__(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        importance: Tensor | None,
        keep: int,
        *,
        samples: Samples | None = None,
    ) -> Compressed:
        return self.compress(Cot(keys, values, mask, importance, keep, samples))

    def compress(self, cot: Cot) -> Compressed:
        """The entries of one layer that take the places of the latents, by default those with the best scores."""
        weight = [cot.importance] if cot.importance is not None else None
        index, kept = self.choose([cot.keys], [cot.values], weight, cot.mask, cot.keep, cot.samples, per="head")
        return Compressed(gather(cot.keys, index, kept), gather(cot.values, index, kept), kept, index)

    @torch.no_grad()
    def choose(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        importance: Sequence[Tensor] | None,
        mask: Tensor,
        keep: int,
        samples: Samples | None = None,
        per: Literal["head", "sample"] = "sample",
    ) -> tuple[Tensor, Tensor]:
        """index [B, G, M] the kept columns in time order (0 in empty slots), kept [B, G, M] bool: which slots hold one.

        per head: G heads of the one layer given, each by its own score. per sample: G = 1, one choice for all layers
        given and all their heads, by S_n = mean_l mean_h S_n[l, h]  [ours]. H and D may differ between layers.
        """
        if type(self).score is Compressor.score:
            raise ValueError(f"{type(self).__name__} makes entries, it does not choose among positions")
        if self.needs_importance and importance is None:
            raise ValueError(f"{type(self).__name__} needs the importance of each entry")
        if not keys:
            raise ValueError("there is no layer to take scores from")
        weights: Sequence[Tensor | None] = importance or [None] * len(keys)
        layers = zip(keys, values, weights, strict=True)
        scores = [self.score(Cot(key, value, mask, weight, keep, samples)) for key, value, weight in layers]
        if per == "head":
            (score,) = (score.expand(keys[0].shape[:3]) for score in scores)
        else:
            score = torch.zeros(mask.shape, device=mask.device)
            for layer in scores:
                score = score + layer.mean(1)
            score = (score / len(scores))[:, None]
        return best(score.masked_fill(~self.eligible(mask, samples)[:, None], NEVER), keep)

    def score(self, cot: Cot) -> Tensor:
        """[B, H or 1, N]: the larger, the likelier kept; -inf is never kept."""
        raise NotImplementedError

    def eligible(self, mask: Tensor, samples: Samples | None) -> Tensor:
        """[B, N] bool: the entries that may be kept at all."""
        return mask

    def count(self, mask: Tensor, keep: int, samples: Samples | None = None) -> Tensor:
        """[B] how many entries a call keeps, known before any forward pass (the loss's denominator)."""
        return self.eligible(mask, samples).sum(1).clamp(max=keep)


def best(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """index and kept [B, G, M] of the `keep` best scores [B, G, N], put back in time order; -inf is never kept.

    Order of kept entries: time [open]. N < keep leaves the last slots empty, never filled [open].
    """
    columns = score.shape[-1]
    top = score.sort(dim=-1, descending=True, stable=True)  # equals: the earlier one; topk's choice depends on padding
    index = torch.where(top.values > NEVER, top.indices, columns)[..., :keep]
    index = index.sort(dim=-1).values
    if columns < keep:
        index = torch.nn.functional.pad(index, (0, keep - columns), value=columns)
    kept = index < columns
    return index.masked_fill(~kept, 0), kept


def gather(entries: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """entries [B, H, N, D] at index [B, H or 1, M] -> [B, H, M, D], zero in the slots that are not kept."""
    index, kept = (part.expand(-1, entries.shape[1], -1) for part in (index, kept))
    if entries.shape[2] == 0:
        empty = entries.new_zeros(*index.shape, entries.shape[-1])
        return empty + entries.sum()  # of nothing: 0, but adapters that made the entries get their gradient
    picked = entries.gather(2, index[..., None].expand(*index.shape, entries.shape[-1]))
    return picked.masked_fill(~kept[..., None], 0)
