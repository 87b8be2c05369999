"""Per-layer loss and teacher weights between two log lines."""

from __future__ import annotations

from torch import Tensor

from kava.fuse import Collapse, Window


class StepMetrics:
    """Filled by the objective in updates that are logged, emptied when they are written."""

    def __init__(self, alarm: float):
        self._sums: dict[tuple[str, int], list[float]] = {}
        self._weights = Collapse(alarm)

    def layer(self, kind: str, layer: int, total: float, count: float) -> None:
        sums = self._sums.setdefault((kind, layer), [0.0, 0.0])
        sums[0] += total
        sums[1] += count

    def weights(self, weights: Tensor, kept: Tensor) -> None:
        self._weights.add(weights, kept)

    def drain(self) -> tuple[dict[str, list[float | None]], Window | None]:
        """Mean loss per kind and compared layer, and the window of weights; the sums start again at 0."""
        layers: dict[str, list[float | None]] = {}
        for (kind, _), (total, count) in sorted(self._sums.items()):
            layers.setdefault(kind, []).append(total / count if count else None)
        self._sums = {}
        return layers, self._weights.close()
