"""Student and teacher entries of the chosen positions, brought to one shape: the explicit line's two forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kava.align import Aggregator, KVDimensionProjector, StudentProjector, flatten_heads, layer_map, mix
from kava.compress import Samples
from kava.config import ExplicitConfig, ProjectorConfig
from kava.errors import ConfigError
from kava.objective.pairing import Pairing, Pairs, take
from kava.teachers.base import KVShape, TeacherKV

TO_STUDENT, TO_TEACHER = "teacher_to_student", "student_to_teacher"


@dataclass(frozen=True)
class Compared:
    """One comparison: student and target [B, G, M, d], kept [B, G, M], and the weight of each entry, if any.

    `part` is k or v, `place` the number of the compared layer (0 in the aggregated form).
    """

    part: str
    place: int
    student: Tensor
    target: Tensor
    kept: Tensor
    weight: Tensor | None = None


class Bridge(nn.Module):
    """What both forms share. It holds everything that is trained beside the student: projector and layer weights."""

    def __init__(self, explicit: ExplicitConfig, projector: ProjectorConfig, student: KVShape, teacher: KVShape):
        super().__init__()
        self.explicit, self.settings = explicit, projector
        self.student, self.teacher = student, teacher
        self.parts: tuple[str, ...] = ("k", "v") if explicit.parts == "both" else (explicit.parts,)
        self.projector: nn.Module | None = None
        self.target_is_trained = projector.direction == TO_STUDENT and projector.trainable

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Groups G and width d of every compared layer."""
        raise NotImplementedError

    def compare(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        teacher: TeacherKV,
        mask: Tensor,
        samples: Samples,
        pairing: Pairing,
        weighted: bool = False,
    ) -> Iterator[Compared]:
        """Every comparison; keys and values [B, H, N, D] per layer are the student's, at the CoT columns."""
        raise NotImplementedError

    def projector_at(self, place: int) -> KVDimensionProjector | None:
        """The projector on the teacher's side of a compared layer, if there is one."""
        found = self.projector[place] if isinstance(self.projector, nn.ModuleList) else self.projector
        return found if isinstance(found, KVDimensionProjector) else None

    def _freeze_unused(self) -> None:
        """The half of a projector whose part is not compared would wait for a gradient that never comes."""
        for part in {"k", "v"} - set(self.parts):
            for name, weight in self.named_parameters():
                if name.startswith("projector.") and part.upper() in name.split("."):
                    weight.requires_grad_(False)

    def _project(self, projector: nn.Module | None, place: int, student: list[Tensor], target: list[Tensor]) -> Any:
        """Keys and values [B, M, width] of both sides, in one width."""
        if isinstance(projector, KVDimensionProjector):
            return student, list(projector(*target))
        if isinstance(projector, StudentProjector):
            return list(projector(*student, place)), target
        return student, target

    def _pieces(self, place: int, both: Any, pairs: Pairs, weight: Tensor | None) -> Iterator[Compared]:
        student, target = both
        for number, part in enumerate(("k", "v")):
            if part in self.parts:
                yield Compared(part, place, student[number], target[number], pairs.kept, weight)


class PerLayer(Bridge):
    """Layer by layer; head by head where the sizes agree and nothing is projected."""

    def __init__(self, explicit: ExplicitConfig, projector: ProjectorConfig, student: KVShape, teacher: KVShape):
        super().__init__(explicit, projector, student, teacher)
        self.layers = _layers(explicit.layers, student.num_layers)
        self.map = layer_map(student.num_layers, teacher.num_layers, explicit.layer_map)
        mine, theirs = student.layer_size, teacher.layer_size
        if projector.direction == TO_STUDENT:
            self.projector = nn.ModuleList(_mlp(projector, theirs, mine) for _ in self.layers)
        elif projector.direction == TO_TEACHER:
            self.projector = StudentProjector(len(self.layers), mine, theirs, projector.init, projector.trainable)
        elif (student.num_heads, student.head_size) != (teacher.num_heads, teacher.head_size):
            raise _unequal(student, teacher)
        self._freeze_unused()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        if self.projector is None:
            return [(self.student.num_heads, self.student.head_size)] * len(self.layers)
        width = self.student if self.settings.direction == TO_STUDENT else self.teacher
        return [(1, width.layer_size)] * len(self.layers)

    def compare(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        teacher: TeacherKV,
        mask: Tensor,
        samples: Samples,
        pairing: Pairing,
        weighted: bool = False,
    ) -> Iterator[Compared]:
        shared = None
        if self.explicit.choose == "sample" or teacher.only is not None:
            with torch.no_grad():
                shared = pairing.shared(teacher, mask, samples)
        for place, layer in enumerate(self.layers):
            key, value = (mix(entries, self.map[layer]) for entries in (teacher.keys, teacher.values))
            with torch.no_grad():
                looked = None if teacher.importance is None else mix(teacher.importance, self.map[layer])
                pairs = shared or pairing.per_head(key, value, looked, mask, samples)
                weight = _weight(looked, pairs) if weighted else None
            target = [take(part[pairs.source], pairs.target, pairs.kept) for part in (key, value)]
            student = [take(part[layer], pairs.student, pairs.kept) for part in (keys, values)]
            if self.projector is None:
                yield from self._pieces(place, (student, target), _wide(pairs, student[0]), weight)
                continue
            flat = [[flatten_heads(part) for part in side] for side in (student, target)]
            projector = self.projector[place] if isinstance(self.projector, nn.ModuleList) else self.projector
            both = self._project(projector, place, *flat)
            yield from self._pieces(place, _one_group(both), pairs, weight)


class Aggregated(Bridge):
    """One vector per token and side, made of all layers; positions are chosen once per sample."""

    def __init__(self, explicit: ExplicitConfig, projector: ProjectorConfig, student: KVShape, teacher: KVShape):
        super().__init__(explicit, projector, student, teacher)
        method, whole = explicit.aggregation, explicit.use_all_layers
        self.gather_student = Aggregator(method, student.num_layers, whole)
        self.gather_teacher = Aggregator(method, teacher.num_layers, whole)
        if not self.target_is_trained:  # a target that is nobody's projection stays as the teacher has it
            self.gather_teacher.requires_grad_(False)
        mine, theirs = self.gather_student.dim(student), self.gather_teacher.dim(teacher)
        if projector.direction == TO_STUDENT:
            self.projector = _mlp(projector, theirs, mine)
        elif projector.direction == TO_TEACHER:
            self.projector = StudentProjector(1, mine, theirs, projector.init, projector.trainable)
        elif mine != theirs:
            raise _unequal(student, teacher, f"{mine} and {theirs} after {method}")
        self.width = theirs if projector.direction == TO_TEACHER else mine
        self._freeze_unused()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(1, self.width)]

    def compare(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        teacher: TeacherKV,
        mask: Tensor,
        samples: Samples,
        pairing: Pairing,
        weighted: bool = False,
    ) -> Iterator[Compared]:
        with torch.no_grad():
            pairs = pairing.shared(teacher, mask, samples)
        target = [
            self.gather_teacher([take(layer[pairs.source], pairs.target, pairs.kept) for layer in part])
            for part in (teacher.keys, teacher.values)
        ]
        student = [
            self.gather_student([take(layer, pairs.student, pairs.kept) for layer in part]) for part in (keys, values)
        ]
        looked = torch.stack(teacher.importance).mean(0) if weighted and teacher.importance is not None else None
        weight = _weight(looked, pairs) if weighted else None
        yield from self._pieces(0, _one_group(self._project(self.projector, 0, student, target)), pairs, weight)


class Coded(Bridge):
    """One code per token and layer on both sides (`objective/coding.py`); nothing is left to project."""

    def __init__(self, explicit: ExplicitConfig, projector: ProjectorConfig, student: KVShape, size: int):
        super().__init__(explicit, projector, student, student)
        self.parts, self.size = ("z",), size
        self.layers = _layers(explicit.layers, student.num_layers)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(1, self.size)] * len(self.layers)

    def compare(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        teacher: TeacherKV,
        mask: Tensor,
        samples: Samples,
        pairing: Pairing,
        weighted: bool = False,
    ) -> Iterator[Compared]:
        """keys are the student's codes [B, 1, N, z], those of the teacher the fused ones."""
        with torch.no_grad():
            pairs = pairing.shared(teacher, mask, samples)
            looked = torch.stack(teacher.importance).mean(0) if weighted and teacher.importance is not None else None
            weight = _weight(looked, pairs) if weighted else None
        for place, layer in enumerate(self.layers):
            student = take(keys[layer], pairs.student, pairs.kept)
            target = take(teacher.keys[layer][pairs.source], pairs.target, pairs.kept)
            yield Compared("z", place, student, target, pairs.kept, weight)


def make_bridge(explicit: ExplicitConfig, projector: ProjectorConfig, student: KVShape, teacher: KVShape) -> Bridge:
    kind = PerLayer if explicit.form == "per_layer" else Aggregated
    return kind(explicit, projector, student, teacher)


def _layers(asked: str | None, count: int) -> list[int]:
    """The student layers of "a-b", b included; all of them where none are asked for."""
    if asked is None:
        return list(range(count))
    first, last = (int(word) for word in asked.split("-"))
    if last >= count:
        raise ConfigError(f"explicit.layers is {asked}, but the student has layers 0 to {count - 1}")
    return list(range(first, last + 1))


def _mlp(settings: ProjectorConfig, teacher: int, student: int) -> KVDimensionProjector:
    return KVDimensionProjector(
        {"teacher": {"d_model": teacher}},
        student,
        settings.mlp_ratio,
        settings.dropout,
        settings.init,
        settings.trainable,
    )


def _unequal(student: KVShape, teacher: KVShape, more: str = "heads and head sizes differ") -> ConfigError:
    return ConfigError(
        f"the student's cache is {student}, the teacher's {teacher} ({more}), and projector.direction is none",
        "set projector.direction=student_to_teacher (or teacher_to_student) and explicit.choose=sample",
    )


def _one_group(both: Any) -> Any:
    return [[part[:, None] for part in side] for side in both]


def _wide(pairs: Pairs, entries: Tensor) -> Pairs:
    """A choice shared by all heads, spelt out for every head."""
    heads = entries.shape[1]
    student, target, kept = (part.expand(-1, heads, -1) for part in (pairs.student, pairs.target, pairs.kept))
    return Pairs(student, target, pairs.source, kept)


def _weight(looked: Tensor | None, pairs: Pairs) -> Tensor:
    """The importance of each kept entry over its mean among the kept: [B, G, M], mean 1 (all 1 where all are 0)."""
    assert looked is not None
    if looked.shape[-1] == 0:  # no sample has a chain of thought
        return pairs.kept.to(looked.dtype)
    groups = pairs.target.shape[1]
    source = looked if groups == looked.shape[1] else looked.mean(1, keepdim=True)
    found = source[pairs.source].gather(2, pairs.target).masked_fill(~pairs.kept, 0.0)
    mean = found.sum(2, keepdim=True) / pairs.kept.sum(2, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, found / mean.clamp(min=torch.finfo(found.dtype).tiny), pairs.kept.to(found.dtype))
