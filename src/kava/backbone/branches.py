"""What the columns of a pass attend to, branch by branch: a text needs no mask, and no branch computes another's columns."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kava.backbone.masks import causal_mask, within_window


@dataclass(frozen=True)
class Branch:
    """Columns of a pass and the keys that they attend to, slices of [prefix | pass] one behind the other.

    mask [B or 1, 1, columns, keys] bool; None: causal, and the keys are the columns themselves.
    """

    columns: slice
    keys: tuple[slice, ...]
    mask: Tensor | None = None

    def within(self, window: int | None, device: torch.device) -> "Branch":
        """The branch in a layer with an attention window (None: without one)."""
        if window is None or (self.mask is None and self.size <= window):
            return self
        return replace(self, mask=within_window(self.dense(device), window))

    def of(self, entries: Tensor) -> Tensor:
        """The branch's part of all keys or values [B, H, P + T, D]."""
        parts = [entries[:, :, columns] for columns in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @property
    def size(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def dense(self, device: torch.device) -> Tensor:
        """The branch's mask, also of one that needs none."""
        return (
            causal_mask(torch.ones(1, self.size, dtype=torch.bool, device=device)) if self.mask is None else self.mask
        )


Attends = Tensor | tuple[Branch, ...]  # a Tensor: one mask [B, 1, T, P + T] for all columns


def as_branches(attends: Attends) -> tuple[Branch, ...]:
    """One mask over everything is one branch."""
    whole = slice(None)
    return (Branch(whole, (whole,), attends),) if isinstance(attends, Tensor) else attends


def text(length: int) -> Branch:
    """A causal text in the first columns; padding behind its rows is seen by nothing."""
    return Branch(slice(0, length), (slice(0, length),))


def continuation(length: int, trunk: Tensor, own: Tensor) -> Branch:
    """The columns after the first `length`, with mask `own` [B, A]: each sees the trunk, the real ones (`trunk` [B, Q])
    of the first columns, and those of its own branch up to itself."""
    columns = slice(length, length + own.shape[1])
    return Branch(columns, (slice(0, trunk.shape[1]), columns), causal_mask(own, trunk))
