"""Which student column is compared with which teacher column: how the text columns use a compressor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.compress import Compressor, Samples
from kava.compress.base import NEVER, best, gather
from kava.compress.crop import Crop
from kava.compress.shuffle import shuffled_order
from kava.errors import ConfigError
from kava.teachers.base import TeacherKV


@dataclass(frozen=True)
class Pairs:
    """Columns of the chain of thought: student [B, G, M] against target [B, G, M] of sample `source` [B].

    G is the number of heads, or 1 where one choice holds for all. kept [B, G, M]: the slot is not empty.
    """

    student: Tensor
    target: Tensor
    source: Tensor
    kept: Tensor

    def of_student(self, entries: Tensor) -> Tensor:
        return gather(entries, self.student, self.kept)

    def of_target(self, entries: Tensor) -> Tensor:
        return gather(entries[self.source], self.target, self.kept)


class Pairing:
    """Chooses with a compressor and pairs a column with itself, with another time, or with another example (controls)."""

    def __init__(self, compressor: Compressor, keep: int | None, shuffle: str = "none"):
        if keep is not None and type(compressor).score is Compressor.score:
            raise ConfigError(
                f"the compressor {type(compressor).__name__} makes entries of its own; the explicit line compares "
                "positions and needs one that scores them",
                "use a compressor with a score, such as rkv",
            )
        self.compressor = compressor if keep is not None else Crop()  # keeping everything needs no score
        self.keep = keep
        self.shuffle = shuffle

    def all_columns(self) -> "Pairing":
        """Every column with itself, for measuring."""
        return Pairing(self.compressor, None)

    def kept_at_most(self, mask: Tensor) -> int:
        return mask.shape[1] if self.keep is None else self.keep

    def counts(self, mask: Tensor, samples: Samples) -> Tensor:
        """[B] how many pairs a head of each sample has, from the batch alone."""
        own = self.compressor.count(mask, self.kept_at_most(mask), samples)
        return torch.minimum(own, own.roll(1)) if self.shuffle == "examples" else own

    def shared(self, teacher: TeacherKV, mask: Tensor, samples: Samples) -> Pairs:
        """One choice per sample for all layers and heads."""
        keep = self.kept_at_most(mask)
        if teacher.only is not None:  # a store has chosen already
            score = torch.zeros(mask.shape, device=mask.device).masked_fill(~teacher.only, NEVER)
            return self._paired(*best(score[:, None], keep), mask, samples)
        importance = teacher.importance if self.compressor.needs_importance else None
        chosen = self.compressor.choose(teacher.keys, teacher.values, importance, mask, keep, samples)
        return self._paired(*chosen, mask, samples)

    def per_head(
        self, keys: Tensor, values: Tensor, importance: Tensor | None, mask: Tensor, samples: Samples
    ) -> Pairs:
        """A choice of its own for every head of one layer."""
        weight = [importance] if importance is not None and self.compressor.needs_importance else None
        chosen = self.compressor.choose([keys], [values], weight, mask, self.kept_at_most(mask), samples, per="head")
        return self._paired(*chosen, mask, samples)

    def _paired(self, index: Tensor, kept: Tensor, mask: Tensor, samples: Samples) -> Pairs:
        rows = torch.arange(len(index), device=index.device)
        if self.shuffle == "time":
            order = shuffled_order(self.compressor.count(mask, index.shape[2], samples), index.shape[2], samples)
            return Pairs(index, index.gather(2, order[:, None].expand_as(index)), rows, kept)
        if self.shuffle == "examples":
            return Pairs(index, index.roll(1, 0), rows.roll(1), kept & kept.roll(1, 0))
        return Pairs(index, index, rows, kept)
