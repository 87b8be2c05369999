"""What changes while a run goes on: weights that rise, layers that come in later. Progress runs from 0 to 1."""

import math
from collections.abc import Sequence


def ramp_value(progress: float, ramp: tuple[float, float]) -> float:
    """0 before the ramp, 1 after it, a straight line between; a ramp without length is a step."""
    start, end = ramp
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


def layer_weights(progress: float, layers: Sequence[int], count: int, warmup: float) -> list[float]:
    """The weight of each of the compared `layers` of a student of `count` layers.

    Until `warmup` only the first third of the layers counts; over as long again the others are blended in.
    """
    late = ramp_value(progress, (warmup, min(1.0, 2 * warmup))) if warmup > 0 else 1.0
    return [1.0 if layer < math.ceil(count / 3) else late for layer in layers]
