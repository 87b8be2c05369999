"""The files of a run with several teachers, read and checked: routing weights, losses by layer, alignments."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config import TeacherSpec
from kava.config.typed_file import read_dict, read_dicts
from kava.errors import DataError
from kava.lab.analysis.runs import Run
from kava.lab.analysis.study import COUNTED, Study, StudyMember, value
from kava.run_files import Alignments, LayerLossLine, RoutingLine, SampledRouting

AGAIN = "kava train writes it; train again"
PARTS = {"k": "keys", "v": "values", "z": "codes"}
Weights = tuple[float, ...]  # one per teacher


@dataclass(frozen=True)
class Routing:
    """The teachers' mean weights at every logged update; `by_layer` is () where all layers share them."""

    teachers: tuple[str, ...]
    steps: tuple[int, ...]
    weights: tuple[Weights, ...]
    by_layer: tuple[tuple[Weights, ...], ...]
    entropy: tuple[float | None, ...]
    temperature: tuple[float | None, ...]


@dataclass(frozen=True)
class RoutingSample:
    """The weights of one validation question."""

    name: str
    task: str
    weights: Weights


@dataclass(frozen=True)
class RoutingSamples:
    """The weights of every validation question at one update."""

    step: int
    teachers: tuple[str, ...]
    samples: tuple[RoutingSample, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(sample.task for sample in self.samples))

    @property
    def vary(self) -> bool:
        """True if the weights depend on the question."""
        first = self.samples[0].weights
        return any(abs(a - b) > 1e-6 for s in self.samples for a, b in zip(s.weights, first, strict=True))

    def of_task(self, task: str) -> list[RoutingSample]:
        return [sample for sample in self.samples if sample.task == task]


@dataclass(frozen=True)
class LayerLoss:
    """Part (k, v, z) -> the loss of each student layer at every logged update; None for layers that were not compared."""

    steps: tuple[int, ...]
    parts: Mapping[str, tuple[tuple[float | None, ...], ...]]


@dataclass(frozen=True)
class AlignmentExample:
    """A text in student and teacher tokens, and the overlap of every pair."""

    text: str
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    iou: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TeacherAlignment:
    """How one teacher is aligned: `layer_map` has the (teacher layer, weight) pairs of every student layer."""

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
    """The files of one run; None for one that was not written."""

    run: Run
    routing: Routing | None
    samples: RoutingSamples | None
    layer_loss: LayerLoss | None
    alignment: tuple[TeacherAlignment, ...] | None


LogsByMember = Mapping[str, Mapping[int | None, MixtureLogs]]  # member's label -> seed -> files


def load_mixture_logs(study: Study) -> LogsByMember:
    """The files of every member that has some; of its finished runs only, if it has any."""
    logs: dict[str, dict[int | None, MixtureLogs]] = {}
    for member in study.members:
        for run in counted_runs(member):
            parts = [_read(run.folder / name, *how) for name, *how in FILES]
            if any(part is not None for part in parts):
                logs.setdefault(member.label, {})[run.seed] = MixtureLogs(run, *parts)
    return logs


def counted_runs(member: StudyMember) -> list[Run]:
    """The runs that were trained to the end; all runs if none was."""
    return [run for run in member.runs if run.status in COUNTED] or list(member.runs)


def teacher_specs(run: Run) -> dict[str, Mapping[str, Any]]:
    """Teacher's name -> its entry in the recipe."""
    entries = value(run.recipe, "mixture.teachers") or ()
    return {TeacherSpec.model_construct(**entry).label: entry for entry in entries if isinstance(entry, dict)}


def _read(path: Path, what: str, kind: Any, parse: Callable[[Any], Any]) -> Any:
    """The parsed file, None where there is none. JSON lines are sorted by update; a resumed run's later line counts."""
    if not path.is_file() or not path.stat().st_size:
        return None
    if path.suffix == ".json":
        data: Any = read_dict(path, kind, AGAIN)
    else:
        data = [line for _, line in sorted({line["step"]: line for line in read_dicts(path, kind, AGAIN)}.items())]
    try:
        return parse(data)
    except (KeyError, ValueError, IndexError) as error:  # its parts do not belong together
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no file of {what} ({reason})", AGAIN) from error


def _routing(lines: Sequence[Mapping[str, Any]]) -> Routing:
    teachers = tuple(lines[0]["weights"])
    by_layer = tuple(tuple(_weights(layer, len(teachers)) for layer in line.get("by_layer") or ()) for line in lines)
    if len(set(map(len, by_layer))) != 1:
        raise ValueError("the number of layers changes")
    return Routing(
        teachers,
        tuple(int(line["step"]) for line in lines),
        tuple(_weights([line["weights"][name] for name in teachers], len(teachers)) for line in lines),
        by_layer if len(by_layer[0]) > 1 else (),
        tuple(_number(line.get("entropy")) for line in lines),
        tuple(_number(line.get("temperature")) for line in lines),
    )


def _samples(data: Mapping[str, Any]) -> RoutingSamples:
    teachers = tuple(map(str, data["teachers"]))
    samples = tuple(
        RoutingSample(str(sample["id"]), str(sample["task"]), _weights(sample["weights"], len(teachers)))
        for sample in data["samples"]
    )
    return RoutingSamples(int(data["step"]), teachers, samples)


def _layer_loss(lines: Sequence[Mapping[str, Any]]) -> LayerLoss:
    names = [name for name in PARTS if name in lines[0]]
    if not names:
        raise ValueError(f"none of {', '.join(PARTS)}")
    parts = {}
    for name in names:
        most = max(len(line[name]) for line in lines)  # at first the last layers may not be compared
        parts[name] = tuple((*map(_number, line[name]), *[None] * (most - len(line[name]))) for line in lines)
    return LayerLoss(tuple(int(line["step"]) for line in lines), parts)


def _alignments(data: Mapping[str, Any]) -> tuple[TeacherAlignment, ...]:
    return tuple(_alignment(str(name), entry, int(data["student_layers"])) for name, entry in data["teachers"].items())


def _alignment(name: str, entry: Mapping[str, Any], student_layers: int) -> TeacherAlignment:
    layers = tuple(tuple((int(layer), weight) for layer, weight in pairs) for pairs in entry["layer_map"])
    count = int(entry["num_layers"])
    if len(layers) != student_layers or any(not 0 <= layer < count for pairs in layers for layer, _ in pairs):
        raise ValueError(f"the layer map of {name} does not fit {student_layers} and {count} layers")
    example = None if entry.get("example") is None else _example(entry["example"])
    return TeacherAlignment(name, _number(entry.get("coverage")), count, layers, example)


def _example(entry: Mapping[str, Any]) -> AlignmentExample:
    student, teacher = tuple(map(str, entry["student"])), tuple(map(str, entry["teacher"]))
    iou = tuple(tuple(map(float, row)) for row in entry["iou"])
    if len(iou) != len(student) or any(len(row) != len(teacher) for row in iou):
        raise ValueError(f"iou is not {len(student)} by {len(teacher)}")
    return AlignmentExample(str(entry["text"]), student, teacher, iou)


def _weights(values: Sequence[Any], count: int) -> Weights:
    weights = tuple(map(float, values))
    if len(weights) != count or not all(-1e-6 <= weight <= 1 + 1e-6 for weight in weights):
        raise ValueError(f"weights {list(values)} are not {count} shares")
    return weights


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


FILES: tuple[tuple[str, str, Any, Callable[[Any], Any]], ...] = (  # in the order of the fields of MixtureLogs
    ("routing.jsonl", "routing weights", RoutingLine, _routing),
    ("routing_samples.json", "weights by sample", SampledRouting, _samples),
    ("layer_loss.jsonl", "losses by layer", LayerLossLine, _layer_loss),
    ("alignment.json", "alignments", Alignments, _alignments),
)
