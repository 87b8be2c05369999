"""Which teacher layers a student layer is compared with."""

from __future__ import annotations

from torch import Tensor

from kava.errors import ConfigError, ModelError
from kava.shapes import precise

STRATEGIES = ("ratio", "uniform", "skip")

Entry = list[tuple[int, float]]  # teacher layers with weights that sum to 1


def layer_map(num_student: int, num_teacher: int, strategy: str = "ratio") -> list[Entry]:
    """For each student layer s its teacher layers.

    ratio    t = s (L_t - 1) / (L_s - 1), between two layers the two weighted by nearness: first to first, last to last
    uniform  the same t, rounded to the nearest layer (a half upwards)
    skip     t = s * floor(L_t / L_s): the lower layers, evenly; the top ones may stay unused

    A student of one layer is given the teacher's last one (skip: the first).
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown layer map {strategy!r}", "known: " + ", ".join(STRATEGIES))
    if num_student < 1 or num_teacher < 1:
        raise ConfigError(f"no map between {num_student} student layers and {num_teacher} teacher layers")
    if strategy == "skip":
        if num_teacher < num_student:
            raise ModelError(
                f"the layer map skip needs a teacher of at least as many layers as the student's {num_student}, "
                f"this one has {num_teacher}",
                "use ratio or uniform",
            )
        return [[(layer * (num_teacher // num_student), 1.0)] for layer in range(num_student)]
    if num_student == 1:
        return [[(num_teacher - 1, 1.0)]]
    steps, span = num_student - 1, num_teacher - 1
    if strategy == "uniform":
        return [[((2 * layer * span + steps) // (2 * steps), 1.0)] for layer in range(num_student)]
    return [_between(layer * span, steps) for layer in range(num_student)]


def _between(place: int, steps: int) -> Entry:
    """The layers around place / steps; whole numbers until the last division, so that the ends are exact."""
    below, rest = divmod(place, steps)
    return [(below, 1 - rest / steps), (below + 1, rest / steps)] if rest else [(below, 1.0)]


def mix(layers: list[Tensor], entry: Entry) -> Tensor:
    """sum_i weight_i * layers[i], in float32 or better; a single layer comes back as it is."""
    if len(entry) == 1:
        return layers[entry[0][0]]
    first = layers[entry[0][0]]
    total = sum(weight * precise(layers[index].to(first.device)) for index, weight in entry)
    return total.to(first.dtype)  # type: ignore[union-attr]
