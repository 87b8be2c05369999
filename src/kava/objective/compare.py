"""Student and teacher entries side by side in one shape: by latent slot, or by text column in three forms."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kava.align import Aggregator, KVDimensionProjector, StudentProjector, flatten_heads, layer_map, mix
from kava.compress import Compressor, Samples
from kava.config import Recipe
from kava.errors import ConfigError
from kava.losses.guard import GUARDS
from kava.objective.pairing import Pairing, Pairs
from kava.objective.records import Batch, StudentView
from kava.objective.targets import Target
from kava.teachers.base import KVShape
from kava.teachers.mixture import Mixture

TO_STUDENT, TO_TEACHER = "teacher_to_student", "student_to_teacher"


@dataclass(frozen=True)
class KVComparison:
    """Student and target [B, G, M, d] of one compared layer and kind (k, v, or z for codes); kept [B, G, M] bool.

    layer: the number among the compared layers (0 in the aggregated form). weight [B, G, M] of each entry, if any.
    """

    kind: str
    layer: int
    student: Tensor
    target: Tensor
    kept: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Sides:
    """What is compared. weighted: each entry by the teacher's attention to it; pairing: another choice than the recipe's."""

    batch: Batch
    student: StudentView
    target: Target
    samples: Samples
    weighted: bool = False
    pairing: Pairing | None = None


class Comparison(nn.Module):
    """Sides -> every KVComparison. Holds what is trained between student and teacher."""

    kinds: tuple[str, ...] = ("k", "v")
    layers: Sequence[int] = ()  # student layers that are compared one by one
    sizes: list[tuple[int, int]]  # heads and numbers in an entry, of every compared layer
    needs_partners = False  # the targets are those of another example in the batch
    guarded = False  # a trained projection of the target is kept from collapsing
    target_is_trained = False
    guard_weight = 0.0
    guard_most = math.inf
    pairing: Pairing
    reference: Tensor  # [2, compared layers, d] spread of the untrained student's entries, of a trained projection

    @property
    def needs_importance(self) -> bool:
        """True if the choice of entries depends on the teacher's attention to them."""
        return self.pairing.compressor.needs_importance

    def pair_counts(self, mask: Tensor, samples: Samples) -> Tensor:
        """[B] compared entries of a head, from the batch alone."""
        return self.pairing.counts(mask, samples)

    def forward(self, sides: Sides) -> Iterator[KVComparison]:
        raise NotImplementedError

    @torch.no_grad()
    def _shared_pairs(self, sides: Sides) -> tuple[Pairs, Tensor | None]:
        """One choice per sample, and the weight of each entry by its mean importance over the layers."""
        kv = sides.target.kv
        pairs = (sides.pairing or self.pairing).shared(kv, sides.target.mask, sides.samples)
        if not sides.weighted or kv.importance is None:
            return pairs, None
        return pairs, _entry_weights(torch.stack(kv.importance).mean(0), pairs)

    def reference_of(self, pair: KVComparison) -> Tensor:
        return self.reference[int(pair.kind == "v"), pair.layer]


class BySlot(Comparison):
    """Latent j with the j-th entry that the compressor keeps of the chain of thought, per sample, layer and head."""

    def __init__(self, compressor: Compressor, student: KVShape, keep: int):
        super().__init__()
        self.compressor, self.keep, self.layers = compressor, keep, range(student.num_layers)
        self.needs_partners = compressor.crosses_samples
        self.sizes = [(student.num_heads, student.head_size)] * student.num_layers

    @property
    def needs_importance(self) -> bool:
        return self.compressor.needs_importance

    def pair_counts(self, mask: Tensor, samples: Samples) -> Tensor:
        return self.compressor.count(mask, self.keep, samples)

    def forward(self, sides: Sides) -> Iterator[KVComparison]:
        student, target, samples = sides.student, sides.target, sides.samples
        for layer in self.layers:
            weight = None if target.kv.importance is None else target.kv.importance[layer]
            key, value = target.kv.keys[layer], target.kv.values[layer]
            entries = self.compressor(key, value, target.mask, weight, self.keep, samples=samples)
            yield KVComparison("k", layer, student.keys[layer], entries.keys, entries.kept)
            yield KVComparison("v", layer, student.values[layer], entries.values, entries.kept)


class ByColumn(Comparison):
    """What both forms without codes share: projector, layer weights and the guard's reference."""

    def __init__(self, recipe: Recipe, student: KVShape, teacher: KVShape, pairing: Pairing):
        super().__init__()
        explicit, projector = recipe.explicit, recipe.projector
        self.explicit, self.settings, self.pairing = explicit, projector, pairing
        self.kinds = ("k", "v") if explicit.parts == "both" else (explicit.parts,)
        self.projector: nn.Module | None = None
        self.target_is_trained = projector.direction == TO_STUDENT and projector.trainable
        self.guarded = self.target_is_trained and projector.guard in GUARDS
        self.guard_most = GUARDS.get(projector.guard, math.inf)
        self.guard_weight = projector.guard_weight

    def projector_at(self, layer: int) -> KVDimensionProjector | None:
        """The projector on the teacher's side of a compared layer, if there is one."""
        module = self.projector[layer] if isinstance(self.projector, nn.ModuleList) else self.projector
        return module if isinstance(module, KVDimensionProjector) else None

    def last_map(self, kind: str, layer: int) -> nn.Linear | None:
        """The last linear map between the two sides of a compared layer's keys or values, on whichever side it is."""
        if isinstance(self.projector, StudentProjector):
            return self.projector.last(kind, layer)
        projector = self.projector_at(layer)
        return None if projector is None else projector.last(kind)

    def _connect(self, student: int, teacher: int, layers: int | None, unequal: str) -> None:
        """Adds the projector between these widths, for each of `layers` or (None) one vector, and what it needs.

        unequal: in which way the two sides differ, if they cannot be compared without one.
        """
        settings = self.settings
        if settings.direction == TO_STUDENT:
            sizes, rest = {"teacher": {"d_model": teacher}}, (settings.mlp_ratio, settings.dropout)
            made = [
                KVDimensionProjector(sizes, student, *rest, settings.init, settings.trainable)
                for _ in range(layers or 1)
            ]
            self.projector = made[0] if layers is None else nn.ModuleList(made)
        elif settings.direction == TO_TEACHER:
            self.projector = StudentProjector(layers or 1, student, teacher, settings.init, settings.trainable)
        elif unequal:
            raise ConfigError(
                f"{unequal}, and projector.direction is none",
                "set projector.direction=student_to_teacher (or teacher_to_student) and explicit.choose=sample",
            )
        self.sizes = [(1, teacher if settings.direction == TO_TEACHER else student)] * (layers or 1)
        unused = {"K", "V"} - {kind.upper() for kind in self.kinds}
        for name, weight in self.named_parameters():
            if name.startswith("projector.") and unused & {*name.split(".")}:
                weight.requires_grad_(False)
        if self.target_is_trained:
            self.register_buffer("reference", torch.zeros(2, len(self.sizes), student))

    def _project(self, layer: int, student: list[Tensor], target: list[Tensor]) -> Any:
        """Keys and values [B, M, width] of both sides -> [B, 1, M, width] in one width."""
        of_teacher = self.projector_at(layer)
        if of_teacher is not None:
            target = list(of_teacher(*target))
        elif self.projector is not None:
            student = list(self.projector(*student, layer))
        return [[entries[:, None] for entries in side] for side in (student, target)]

    def _by_kind(self, layer: int, sides: Any, kept: Tensor, weight: Tensor | None) -> Iterator[KVComparison]:
        student, target = (dict(zip("kv", side, strict=True)) for side in sides)
        for kind in self.kinds:
            yield KVComparison(kind, layer, student[kind], target[kind], kept, weight)


class PerLayer(ByColumn):
    """Layer by layer; head by head where the sizes agree and nothing is projected."""

    def __init__(self, recipe: Recipe, student: KVShape, teacher: KVShape, pairing: Pairing):
        super().__init__(recipe, student, teacher, pairing)
        self.layers = compared_layers(recipe.explicit.layers, student.num_layers)
        self.map = layer_map(student.num_layers, teacher.num_layers, recipe.explicit.layer_map)
        heads = (student.num_heads, student.head_size)
        differ = heads != (teacher.num_heads, teacher.head_size)
        unequal = _unequal(student, teacher, "heads and head sizes differ") if differ else ""
        self._connect(student.layer_size, teacher.layer_size, len(self.layers), unequal)
        if self.projector is None:
            self.sizes = [heads] * len(self.layers)

    def forward(self, sides: Sides) -> Iterator[KVComparison]:
        student, target, samples = sides.student, sides.target, sides.samples
        kv, pairing, shared = target.kv, sides.pairing or self.pairing, None
        if self.explicit.choose == "sample" or kv.only is not None:
            with torch.no_grad():
                shared = pairing.shared(kv, target.mask, samples)
        for number, layer in enumerate(self.layers):
            key, value = (mix(entries, self.map[layer]) for entries in (kv.keys, kv.values))
            with torch.no_grad():
                importance = None if kv.importance is None else mix(kv.importance, self.map[layer])
                pairs = shared or pairing.per_head(key, value, importance, target.mask, samples)
                weight = _entry_weights(importance, pairs) if sides.weighted else None
            targets = [pairs.of_target(entries) for entries in (key, value)]
            own = [pairs.of_student(part[layer]) for part in (student.keys, student.values)]
            if self.projector is None:
                kept = pairs.kept.expand(-1, own[0].shape[1], -1)
                yield from self._by_kind(number, (own, targets), kept, weight)
            else:
                flat = [[flatten_heads(entries) for entries in side] for side in (own, targets)]
                yield from self._by_kind(number, self._project(number, *flat), pairs.kept, weight)


class Aggregated(ByColumn):
    """One vector per token and side, made of all layers; positions are chosen once per sample."""

    def __init__(self, recipe: Recipe, student: KVShape, teacher: KVShape, pairing: Pairing):
        super().__init__(recipe, student, teacher, pairing)
        method, whole = recipe.explicit.aggregation, recipe.explicit.use_all_layers
        self.gather_student = Aggregator(method, student.num_layers, whole)
        self.gather_teacher = Aggregator(method, teacher.num_layers, whole)
        if not self.target_is_trained:  # a target that nothing projects stays as the teacher has it
            self.gather_teacher.requires_grad_(False)
        own, other = self.gather_student.dim(student), self.gather_teacher.dim(teacher)
        unequal = _unequal(student, teacher, f"{own} and {other} after {method}") if own != other else ""
        self._connect(own, other, None, unequal)

    def forward(self, sides: Sides) -> Iterator[KVComparison]:
        pairs, weight = self._shared_pairs(sides)
        kv, student = sides.target.kv, sides.student
        targets = [self.gather_teacher([pairs.of_target(layer) for layer in part]) for part in (kv.keys, kv.values)]
        own = [
            self.gather_student([pairs.of_student(layer) for layer in part]) for part in (student.keys, student.values)
        ]
        yield from self._by_kind(0, self._project(0, own, targets), pairs.kept, weight)


class Codes(Comparison):
    """One trained code per token and layer on both sides (`teachers/codes.py`); nothing is left to project."""

    kinds = ("z",)
    target_is_trained = True

    def __init__(self, recipe: Recipe, student: KVShape, mixture: Mixture, pairing: Pairing):
        super().__init__()
        self._mixture, self.pairing = (mixture,), pairing  # in a tuple: no submodule
        self.layers = compared_layers(recipe.explicit.layers, student.num_layers)
        self.sizes = [(1, recipe.mixture.z_size)] * len(self.layers)

    def forward(self, sides: Sides) -> Iterator[KVComparison]:
        codes = self._mixture[0].student_codes(sides.batch, sides.student.keys, sides.student.values)
        pairs, weight = self._shared_pairs(sides)
        for number, layer in enumerate(self.layers):
            own, target = pairs.of_student(codes[layer]), pairs.of_target(sides.target.kv.keys[layer])
            yield KVComparison("z", number, own, target, pairs.kept, weight)


def compared_layers(layers: str | None, count: int) -> list[int]:
    """The student layers of "a-b", b included; all of them where none are named."""
    if layers is None:
        return list(range(count))
    first, last = (int(word) for word in layers.split("-"))
    if last >= count:
        raise ConfigError(f"explicit.layers is {layers}, but the student has layers 0 to {count - 1}")
    return list(range(first, last + 1))


def _entry_weights(importance: Tensor | None, pairs: Pairs) -> Tensor:
    """The importance of each kept entry over its mean among the kept: [B, G, M], mean 1 (all 1 where all are 0)."""
    assert importance is not None
    if importance.shape[-1] == 0:  # no sample has a chain of thought
        return pairs.kept.to(importance.dtype)
    heads = pairs.target.shape[1]
    source = importance if heads == importance.shape[1] else importance.mean(1, keepdim=True)
    entries = source[pairs.source].gather(2, pairs.target).masked_fill(~pairs.kept, 0.0)
    mean = entries.sum(2, keepdim=True) / pairs.kept.sum(2, keepdim=True).clamp(min=1)
    scaled = entries / mean.clamp(min=torch.finfo(entries.dtype).tiny)
    return torch.where(mean > 0, scaled, pairs.kept.to(entries.dtype))


def _unequal(student: KVShape, teacher: KVShape, reason: str) -> str:
    return f"the student's cache is {student}, the teacher's {teacher} ({reason})"
