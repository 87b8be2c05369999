"""What a mixture's run writes down between two log lines: the loss of each layer, and the weights of the teachers."""

from __future__ import annotations

from torch import Tensor

from kava.fuse import Collapse, Window


class StepMetrics:
    """Filled by the objective in updates that are logged, emptied by whoever writes them."""

    def __init__(self, alarm: float):
        self._sums: dict[tuple[str, int], list[float]] = {}
        self._weights = Collapse(alarm)

    def layer(self, part: str, place: int, total: float, count: float) -> None:
        found = self._sums.setdefault((part, place), [0.0, 0.0])
        found[0] += total
        found[1] += count

    def weights(self, weights: Tensor, kept: Tensor) -> None:
        self._weights.add(weights, kept)

    def drain(self) -> tuple[dict[str, list[float | None]], Window | None]:
        """Mean loss per part and compared layer, and the window of weights; both begin anew."""
        layers: dict[str, list[float | None]] = {}
        for (part, _), (total, count) in sorted(self._sums.items()):
            layers.setdefault(part, []).append(total / count if count else None)
        self._sums = {}
        return layers, self._weights.close()
