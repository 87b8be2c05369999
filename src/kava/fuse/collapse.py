"""Statistics of fusion weights over time: means, entropy, and collapse onto one teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.errors import ConfigError

Sums = tuple[Tensor, Tensor]  # mean weights per layer [L, S], entropy []; each a sum over samples


def annealed(start: float, step: float, epoch: float, floor: float = 0.5) -> float:
    """max(floor, start - step * epoch); a start below the floor is unchanged."""
    return min(start, max(floor, start - step * epoch))


@dataclass(frozen=True)
class Window:
    """One log window: mean weight per teacher, the same by layer, and the mean Shannon entropy of a sample's weights.

    `collapsed`: the teacher whose mean weight is above the alarm; `unused`: those below 1 - alarm.
    """

    weights: list[float]
    by_layer: list[list[float]]
    entropy: float
    collapsed: int | None
    unused: list[int]


class Collapse:
    """Collects weights and summarises them per window. A mixture of one teacher never alarms."""

    def __init__(self, alarm: float = 0.95):
        if not 0 < alarm <= 1:
            raise ConfigError(f"the collapse alarm is a mean weight above 0 and at most 1, got {alarm:g}")
        self.alarm = alarm
        self._sums: Sums | None = None
        self._samples = 0

    @torch.no_grad()
    def add(self, weights: Tensor, kept: Tensor | None = None) -> None:
        """weights [B, L or 1, N or 1, S]; kept [B, N]: the real tokens, read where weights differ by token."""
        weights = weights.detach().cpu().double()
        with_entropy = torch.cat([weights, torch.special.entr(weights).sum(-1, keepdim=True)], dim=-1)
        each = _over_tokens(with_entropy, None if kept is None else kept.cpu())
        new = each[..., :-1].sum(0), each[..., -1].mean(1).sum()
        old = self._sums
        self._sums = new if old is None else (old[0] + new[0], old[1] + new[1])
        self._samples += len(each)

    def close(self) -> Window | None:
        """Statistics of the weights since the last call; None if there were none."""
        sums, samples = self._sums, self._samples
        self._sums, self._samples = None, 0
        if sums is None or not samples:
            return None
        by_layer = sums[0] / samples
        mean = by_layer.mean(0).tolist()
        several = len(mean) > 1
        top = max(range(len(mean)), key=mean.__getitem__)
        return Window(
            weights=mean,
            by_layer=by_layer.tolist(),
            entropy=float(sums[1] / samples),
            collapsed=top if several and mean[top] > self.alarm else None,
            unused=[number for number, weight in enumerate(mean) if several and weight < 1 - self.alarm],
        )


def _over_tokens(entries: Tensor, kept: Tensor | None) -> Tensor:
    """[B, L, n] means over the real tokens of [B, L, N or 1, n]; samples without any are left out."""
    if kept is None or entries.shape[2] == 1:
        return entries.mean(2)
    some = kept.any(1)
    real = kept[some][:, None, :, None]
    return (entries[some] * real).sum(2) / real.sum(2)
