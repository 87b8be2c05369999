"""Layer maps: which teacher layers each student layer is compared with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kava.errors import ConfigError, ModelError
from kava.files import write_json
from kava.registry import check_known
from kava.shapes import at_least_float32

STRATEGIES = ("ratio", "blend", "uniform", "skip")

EQUAL = 1e-6  # a CKA closer to 1 than this means equal layers
WRITES = "kava align precompute writes one for a pair of models"

Entry = list[tuple[int, float]]  # teacher layers with weights that sum to 1


def layer_map(num_student: int, num_teacher: int, strategy: str = "ratio") -> list[Entry]:
    """The teacher layers of each student layer s, with weights.

    ratio    t = s (L_t - 1) / (L_s - 1), between two layers the two weighted by nearness: first to first, last to last.
             Every teacher layer is used if L_t <= 2 L_s - 2; `unused` lists the others
    blend    the same t, but every teacher layer contributes to its nearest student layers: weight 1 at t, falling to
             0 one step of t away; equal to ratio if L_t <= L_s
    uniform  the same t, rounded to the nearest layer (a half upwards)
    skip     t = s * floor(L_t / L_s): the lower layers, evenly; the top ones may stay unused

    A student of one layer gets the teacher's last one (skip: the first).
    """
    check_known("layer map", strategy, STRATEGIES)
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
    if strategy == "blend" and span > steps:
        return [_around(layer * span, steps, span) for layer in range(num_student)]
    return [_between(layer * span, steps) for layer in range(num_student)]


def cka_map(similarity: Tensor, top_k: int = 2) -> list[Entry]:
    """The `top_k` most similar teacher layers of each student layer, from similarities c [L_s, L_t] (CKA, at most 1).

    Weights are proportional to c / (1 - c), and an equal layer (c = 1) is used alone. Layers with c <= 0 are left out;
    if all are, the most similar one is used.
    """
    if not 1 <= top_k <= similarity.shape[1]:
        raise ConfigError(f"top_k is {top_k}, the teacher has {similarity.shape[1]} layers", "choose 1 or 2")
    layers: list[Entry] = []
    for row in similarity.double().tolist():
        best = sorted(range(len(row)), key=lambda t: (-row[t], t))[:top_k]
        if not 0 < row[best[0]] < 1 - EQUAL:
            layers.append([(best[0], 1.0)])
            continue
        odds = {t: row[t] / (1 - row[t]) for t in sorted(best) if row[t] > 0}
        layers.append([(t, weight / sum(odds.values())) for t, weight in odds.items()])
    return layers


def unused(layers: list[Entry], num_teacher: int) -> list[int]:
    """Teacher layers that a map does not use."""
    return sorted(set(range(num_teacher)) - {layer for entry in layers for layer, _ in entry})


def write_map(path: str | Path, similarity: Tensor, top_k: int, facts: Mapping[str, Any] | None = None) -> list[Entry]:
    """Writes the map of `cka_map` with its similarities and `facts` as JSON for `read_map`, and returns it."""
    layers = cka_map(similarity, top_k)
    document = {
        **(facts or {}),
        "student_num_layers": similarity.shape[0],
        "teacher_num_layers": similarity.shape[1],
        "top_k": top_k,
        "similarity_matrix": similarity.tolist(),
        "layer_mapping": {str(layer): [list(pair) for pair in entry] for layer, entry in enumerate(layers)},
    }
    write_json(path, document)
    return layers


def read_map(path: str | Path, num_student: int, num_teacher: int) -> list[Entry]:
    """The layer map in a file of `write_map`; it must be for models of these sizes."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        sizes = int(document["student_num_layers"]), int(document["teacher_num_layers"])
        layers = [
            [(int(layer), float(weight)) for layer, weight in document["layer_mapping"][str(number)]]
            for number in range(sizes[0])
        ]
    except OSError as error:
        raise ConfigError(f"layer map {path}: {error.strerror or error}", WRITES) from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"layer map {path} is not a file of layer maps ({reason})", WRITES) from error
    if sizes != (num_student, num_teacher):
        raise ConfigError(
            f"layer map {path} is for {sizes[0]} student and {sizes[1]} teacher layers, the models have {num_student} and "
            f"{num_teacher}",
            WRITES,
        )
    for number, entry in enumerate(layers):
        where, used, weights = f"layer map {path}: student layer {number}", [t for t, _ in entry], [w for _, w in entry]
        if any(not 0 <= layer < num_teacher for layer in used):
            raise ConfigError(f"{where} is given teacher layers {used} of {num_teacher}", WRITES)
        if any(weight < 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
            raise ConfigError(f"{where} has weights {weights}, which must sum to 1", WRITES)
    return layers


def mix(layers: Sequence[Tensor] | Mapping[int, Tensor], entry: Entry) -> Tensor:
    """sum_i weight_i * layers[i], computed in float32 or better; a single layer is returned unchanged."""
    if len(entry) == 1:
        return layers[entry[0][0]]
    first = layers[entry[0][0]]
    total = sum(weight * at_least_float32(layers[index].to(first.device)) for index, weight in entry)
    return total.to(first.dtype)  # type: ignore[union-attr]


def _around(center: int, steps: int, span: int) -> Entry:
    """All layers closer than span / steps to center / steps, weighted by nearness."""
    near = [(layer, span - abs(layer * steps - center)) for layer in range(span + 1)]
    total = sum(weight for _, weight in near if weight > 0)
    return [(layer, weight / total) for layer, weight in near if weight > 0]


def _between(center: int, steps: int) -> Entry:
    """The one or two layers next to center / steps; integers until the last division, so that the ends are exact."""
    below, rest = divmod(center, steps)
    return [(below, 1 - rest / steps), (below + 1, rest / steps)] if rest else [(below, 1.0)]
