"""What every compressor shares: the call, the facts it may ask for, and the top-M selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    """Facts about the batch that some compressors need. Draws depend on these, never on the batch's make-up."""

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
    """One layer's chain of thought as a score sees it; shapes as in Compressor."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    importance: Tensor | None
    keep: int
    samples: Samples | None

    def facts(self) -> Samples:
        """The samples' facts, for scores that cannot do without them."""
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
    `__call__` where entries are made rather than chosen. `samples` is given by keyword and may be ignored.
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
        if self.needs_importance and importance is None:
            raise ValueError(f"{type(self).__name__} needs the importance of each entry")
        score = self.score(Cot(keys, values, mask, importance, keep, samples))
        score = score.expand(keys.shape[:3]).masked_fill(~self.eligible(mask, samples)[:, None], NEVER)
        return select(keys, values, score, keep)

    def score(self, cot: Cot) -> Tensor:
        """[B, H or 1, N]: the larger, the likelier kept; -inf is never kept."""
        raise NotImplementedError

    def eligible(self, mask: Tensor, samples: Samples | None) -> Tensor:
        """[B, N] bool: the entries that may be kept at all."""
        return mask

    def count(self, mask: Tensor, keep: int, samples: Samples | None = None) -> Tensor:
        """[B] how many entries a call keeps, known before any forward pass (the loss's denominator)."""
        return self.eligible(mask, samples).sum(1).clamp(max=keep)


def select(keys: Tensor, values: Tensor, score: Tensor, keep: int) -> Compressed:
    """The `keep` best-scored entries per sample and head, put back in time order; -inf is never kept.

    Order of kept entries: time [open]. N < keep leaves the last slots empty, never filled [open].
    """
    columns = score.shape[-1]
    top = score.sort(dim=-1, descending=True, stable=True)  # equals: the earlier one; topk's choice depends on padding
    index = torch.where(top.values > NEVER, top.indices, columns)[..., :keep]
    index = index.sort(dim=-1).values
    if columns < keep:
        index = torch.nn.functional.pad(index, (0, keep - columns), value=columns)
    kept = index < columns
    index = index.masked_fill(~kept, 0)
    return Compressed(gather(keys, index, kept), gather(values, index, kept), kept, index)


def gather(entries: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """entries [B,H,N,D] at index [B,H,M] -> [B,H,M,D], zero in the slots that are not kept."""
    if entries.shape[2] == 0:
        empty = entries.new_zeros(*index.shape, entries.shape[-1])
        return empty + entries.sum()  # of nothing: 0, but whoever made the entries gets a gradient
    picked = entries.gather(2, index[..., None].expand(*index.shape, entries.shape[-1]))
    return picked.masked_fill(~kept[..., None], 0)
