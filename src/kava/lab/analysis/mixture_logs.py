"""What a run with several teachers leaves behind, read back and checked: weights, losses by layer, how texts and layers meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config import TeacherSpec
from kava.errors import DataError
from kava.lab.analysis.runs import Run, read_lines, read_mapping
from kava.lab.analysis.study import COUNTED, Study, StudyMember, value

ROUTING, SAMPLES, LAYER_LOSS, ALIGNMENT = "routing.jsonl", "routing_samples.json", "layer_loss.jsonl", "alignment.json"
PARTS = {"k": "keys", "v": "values", "z": "codes"}
Weights = tuple[float, ...]  # one per teacher


@dataclass(frozen=True)
class Routing:
    """Mean weights of the teachers at every logged update; by_layer is () where all layers share them."""

    teachers: tuple[str, ...]
    steps: tuple[int, ...]
    weights: tuple[Weights, ...]
    by_layer: tuple[tuple[Weights, ...], ...]
    entropy: tuple[float | None, ...]
    temperature: tuple[float | None, ...]


@dataclass(frozen=True)
class RoutingSample:
    name: str
    task: str
    weights: Weights


@dataclass(frozen=True)
class RoutingSamples:
    """The weights of every validation question, at one update."""

    step: int
    teachers: tuple[str, ...]
    samples: tuple[RoutingSample, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(one.task for one in self.samples))

    @property
    def vary(self) -> bool:
        """Whether the weights depend on the question at all."""
        return any(
            abs(a - b) > 1e-6 for s in self.samples for a, b in zip(s.weights, self.samples[0].weights, strict=True)
        )

    def of_task(self, task: str) -> list[RoutingSample]:
        return [one for one in self.samples if one.task == task]


@dataclass(frozen=True)
class LayerLoss:
    """Part (k, v, z) -> for every logged update the loss of each student layer; None where it was not compared."""

    steps: tuple[int, ...]
    parts: Mapping[str, tuple[tuple[float | None, ...], ...]]


@dataclass(frozen=True)
class AlignmentExample:
    text: str
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    iou: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TeacherAlignment:
    """How one teacher meets the student: layer_map holds (teacher layer, weight) for every student layer."""

    name: str
    coverage: float | None
    num_layers: int
    layer_map: tuple[tuple[tuple[int, float], ...], ...]
    example: AlignmentExample | None

    @property
    def unread(self) -> list[int]:
        """Teacher layers that no student layer reads."""
        read = {layer for entry in self.layer_map for layer, weight in entry if weight > 0}
        return [layer for layer in range(self.num_layers) if layer not in read]


@dataclass(frozen=True)
class MixtureLogs:
    """One run's files; each is None where it was not written."""

    run: Run
    routing: Routing | None
    samples: RoutingSamples | None
    layer_loss: LayerLoss | None
    alignment: tuple[TeacherAlignment, ...] | None


LogsByMember = Mapping[str, Mapping[int | None, MixtureLogs]]  # member's label -> seed -> its files


def read_mixture(run: Run) -> MixtureLogs | None:
    """None for a run that has none of the files."""

    def found(name: str, read: Callable[[Path], Any]) -> Any:
        path = run.folder / name
        return read(path) if path.is_file() and path.stat().st_size else None

    parts = (
        found(ROUTING, read_routing),
        found(SAMPLES, read_samples),
        found(LAYER_LOSS, read_layer_loss),
        found(ALIGNMENT, read_alignment),
    )
    return None if all(part is None for part in parts) else MixtureLogs(run, *parts)


def load_mixture_logs(study: Study) -> LogsByMember:
    """Of a member with finished runs only these."""
    found: dict[str, dict[int | None, MixtureLogs]] = {}
    for member in study.members:
        read = {run.seed: mixture for run in counted_runs(member) if (mixture := read_mixture(run)) is not None}
        if read:
            found[member.label] = read
    return found


def counted_runs(member: StudyMember) -> list[Run]:
    """The runs that were trained to the end; all of them where none was."""
    return [run for run in member.runs if run.status in COUNTED] or list(member.runs)


def teacher_specs(run: Run) -> dict[str, Mapping[str, Any]]:
    """Teacher's name -> its entry in the recipe."""
    entries = value(run.recipe, "mixture.teachers") or ()
    return {TeacherSpec.model_construct(**entry).label: entry for entry in entries if isinstance(entry, dict)}


def read_routing(path: Path) -> Routing:
    """Where an update was logged twice (a run that was continued) the later line counts."""
    with _reading(path, "routing weights"):
        lines = sorted({int(line["step"]): line for line in read_lines(path)}.items())
        teachers = tuple(lines[0][1]["weights"])
        return Routing(
            teachers,
            tuple(step for step, _ in lines),
            tuple(_weights([line["weights"][name] for name in teachers], len(teachers)) for _, line in lines),
            _by_layer([line.get("by_layer") or () for _, line in lines], len(teachers)),
            tuple(_number(line.get("entropy")) for _, line in lines),
            tuple(_number(line.get("temperature")) for _, line in lines),
        )


def _by_layer(lines: Sequence[Sequence[Any]], teachers: int) -> tuple[tuple[Weights, ...], ...]:
    found = tuple(tuple(_weights(layer, teachers) for layer in layers) for layers in lines)
    _same_length(found, "layers")
    return found if len(found[0]) > 1 else ()


def read_samples(path: Path) -> RoutingSamples:
    data = read_mapping(path)
    with _reading(path, "weights by sample"):
        teachers = tuple(map(str, data["teachers"]))
        samples = [
            RoutingSample(str(s["id"]), str(s["task"]), _weights(s["weights"], len(teachers))) for s in data["samples"]
        ]
        if not samples:
            raise ValueError("no samples")
        return RoutingSamples(int(data["step"]), teachers, tuple(samples))


def read_layer_loss(path: Path) -> LayerLoss:
    with _reading(path, "losses by layer"):
        lines = sorted({int(line["step"]): line for line in read_lines(path)}.items())
        names = [name for name in PARTS if name in lines[0][1]]
        if not names:
            raise ValueError(f"none of {', '.join(PARTS)}")
        parts = {name: _filled([tuple(map(_number, line[name])) for _, line in lines]) for name in names}
        return LayerLoss(tuple(step for step, _ in lines), parts)


def _filled(rows: Sequence[tuple[float | None, ...]]) -> tuple[tuple[float | None, ...], ...]:
    """Late layers may come in late: until then they have no number."""
    most = max(map(len, rows))
    return tuple((*row, *[None] * (most - len(row))) for row in rows)


def read_alignment(path: Path) -> tuple[TeacherAlignment, ...]:
    data = read_mapping(path)
    with _reading(path, "alignments"):
        return tuple(_aligned(str(name), one, int(data["student_layers"])) for name, one in data["teachers"].items())


def _aligned(name: str, one: Mapping[str, Any], student_layers: int) -> TeacherAlignment:
    layers = tuple(tuple((int(layer), float(weight)) for layer, weight in entry) for entry in one["layer_map"])
    count = int(one["num_layers"])
    if len(layers) != student_layers or any(not 0 <= layer < count for entry in layers for layer, _ in entry):
        raise ValueError(f"the layer map of {name} does not fit {student_layers} and {count} layers")
    example = one.get("example")
    return TeacherAlignment(
        name, _number(one.get("coverage")), count, layers, None if example is None else _example(example)
    )


def _example(one: Mapping[str, Any]) -> AlignmentExample:
    student, teacher = tuple(map(str, one["student"])), tuple(map(str, one["teacher"]))
    iou = tuple(tuple(map(float, row)) for row in one["iou"])
    if len(iou) != len(student) or any(len(row) != len(teacher) for row in iou):
        raise ValueError(f"iou is not {len(student)} by {len(teacher)}")
    return AlignmentExample(str(one["text"]), student, teacher, iou)


def _weights(values: Sequence[Any], count: int) -> Weights:
    found = tuple(map(float, values))
    if len(found) != count or not all(-1e-6 <= one <= 1 + 1e-6 for one in found):
        raise ValueError(f"weights {list(values)} are not {count} shares")
    return found


def _number(one: Any) -> float | None:
    return None if one is None or not math.isfinite(one) else float(one)


def _same_length(rows: Sequence[Sequence[Any]], what: str) -> None:
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"the number of {what} changes")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path} is no file of {what} ({type(error).__name__}: {error})", "kava train writes it; train again"
        ) from error
