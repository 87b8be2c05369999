"""Several teachers as one: each aligned to the student, then weighted and summed."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kava.align import Aligner, flatten_heads
from kava.align.layers import Entry, layer_map, read_map
from kava.align.rope import rotate
from kava.align.tokens import matched
from kava.backbone.masks import positions
from kava.backbone.model import Backbone
from kava.config import Recipe
from kava.fuse import Query, annealed, fuse, make_fusion
from kava.losses.guard import GUARDS, variance_guard, variation
from kava.shapes import at_least_float32
from kava.teachers.base import Batch, TeacherKV
from kava.teachers.codes import Coder
from kava.teachers.live import before_rotary
from kava.teachers.teacher_set import TeacherSet

Layers = list[Tensor]
MIN_TEACHER_WEIGHT = 1e-12  # of a weight that is not fixed


@dataclass(frozen=True)
class Blend:
    """What a mixture makes of a batch.

    kv      the fused teacher, in the student's shape, rotated as the student's keys are
    weights [B, L or 1, N or 1, S] as the fusion gave them, before teachers without a value are left out
    each    every teacher alone, aligned; with `present`, per teacher the columns [B, N] it has matched
    guard   sum of what is missing of the variation that the student's entries had, per teacher, layer and part
    """

    kv: TeacherKV
    weights: Tensor
    each: list[TeacherKV]
    present: list[Tensor]
    guard: Tensor


def present_in(batch: Batch, number: int) -> Tensor:
    """[B, N] the student's CoT columns that a teacher has matched, from the batch alone."""
    return matched(batch[f"t{number}.iou"]) & batch["cot_mask"]


def _places(batch: Batch) -> Tensor:
    """[B, N] where the student's CoT tokens stand in its own sequence."""
    return positions(batch["cot_mask"], batch["question_mask"].sum(1))


def pool_query(states: Tensor, mask: Tensor, tokens: Tensor) -> Query:
    """The mean of states [B, Q, d] over the question, and the states at the CoT columns; no gradient goes back to them."""
    states, real = at_least_float32(states.detach()), mask[..., None]
    mean = states.masked_fill(~real, 0.0).sum(1) / mask.sum(1).clamp(min=1)[:, None]
    return Query(hidden=mean, tokens=at_least_float32(tokens.detach()))


class Mixture(nn.Module):
    """Aligners, fusion and guard that turn several teachers into one target."""

    initial_kv_loss: Tensor  # kv and kv_unexplained of the held-out examples before the first update
    reference: Tensor  # [2, L, H*D]: how much the student's entries vary within a sample, before training

    def __init__(self, recipe: Recipe, model: Backbone, teachers: TeacherSet):
        super().__init__()
        self.settings, self.student, self.rotary = recipe.mixture, model.kv_shape, model.rotary
        self.names, self.shapes = teachers.names, teachers.shapes
        self.maps = [self._layer_map(number) for number in range(len(self.names))]
        self.codes = recipe.mixture.space == "z"
        self.trained = recipe.projector.trainable
        self.guarded = self.codes or (self.trained and recipe.projector.guard in GUARDS)
        self.guard_most = GUARDS["variance" if self.codes else recipe.projector.guard] if self.guarded else 0.0
        self.guard_weight = recipe.mixture.z_variance if self.codes else recipe.projector.guard_weight
        made, self.which = self._make_aligners()
        self.adapters = nn.ModuleList(made)
        student, z_size = self.student, recipe.mixture.z_size
        self.coder = Coder(student, self.shapes, z_size) if self.codes else None
        self.fusion = make_fusion(recipe.mixture, len(self.names), student)
        sizes = (2, student.num_layers, student.layer_size)
        self.register_buffer("initial_kv_loss", torch.full((2,), float("nan")))
        self.register_buffer("reference", torch.ones(1, sizes[1], z_size) if self.codes else torch.zeros(sizes))
        self.compared = [(part, layer) for part in range(len(self.reference)) for layer in range(student.num_layers)]

    def _layer_map(self, number: int) -> list[Entry]:
        """Which layers of a teacher each student layer is compared with."""
        settings, layers = self.settings, (self.student.num_layers, self.shapes[number].num_layers)
        if settings.layer_map == "cka":
            return read_map(settings.layer_map_files[number], *layers)
        return layer_map(*layers, settings.layer_map)

    def restrict(self, parts: Collection[str], layers: Collection[int], more_keys: Collection[int]) -> None:
        """Only these parts (k, v, z) and student layers are compared: the rest is neither guarded nor trained, as it
        would wait for a gradient that never comes. Keys of the layers `more_keys` get one from another term."""
        names = "z" if self.codes else "kv"
        self.compared = [(part, layer) for part, layer in self.compared if names[part] in parts and layer in layers]
        for aligner in self.adapters if self.trained and not self.codes else ():
            aligner.freeze_unused(layers, parts)  # type: ignore[operator]
            for layer in more_keys:
                aligner.adapter("k", layer).requires_grad_(True)  # type: ignore[operator]
        if self.coder is not None:
            self.coder.freeze_unused(layers)

    def _make_aligners(self) -> tuple[list[Aligner], list[int]]:
        """What is trained, and which of it each teacher uses: teachers of one shape and layer map may share."""
        teachers, trained = list(zip(self.shapes, self.maps, strict=True)), self.trained and not self.codes
        kinds = [repr(teacher) if self.settings.share_adapters else number for number, teacher in enumerate(teachers)]
        unique = list(dict.fromkeys(kinds))
        made = [
            Aligner(shape, self.student, layers, self.settings.heads, trained)
            for shape, layers in (teachers[kinds.index(kind)] for kind in unique)
        ]
        return made, [unique.index(kind) for kind in kinds]

    @property
    def aligners(self) -> list[Aligner]:
        """One for each teacher."""
        return [self.adapters[number] for number in self.which]  # type: ignore[misc]

    def columns(self, batch: Batch) -> Tensor:
        """[B, N] the CoT columns that have a target: some teacher with a weight has matched them."""
        weights = self.settings.weights or [1.0] * len(self.names)
        present = [present_in(batch, number) for number, weight in enumerate(weights) if weight > 0]
        return torch.stack(present).any(0)

    def temperature(self, epoch: int) -> float:
        """Of the softmax over teachers, in an epoch."""
        settings = self.settings
        return annealed(settings.temperature, settings.temperature_step, epoch, settings.temperature_floor)

    @property
    def pooling(self) -> Literal["mean", "first"]:
        """What of a question's values stands for it."""
        return "first" if self.settings.prototype == "cls" else "mean"

    @property
    def target_is_trained(self) -> bool:
        return any(weight.requires_grad for weight in self.parameters())

    # -- one batch -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, query: Query, entries: list[TeacherKV], temperature: float = 1.0) -> Blend:
        """`entries`: keys before the rotary embedding, each teacher at its own tokens."""
        present = [present_in(batch, number) for number in range(len(entries))]
        plain = [self.align(number, batch, kv) for number, kv in enumerate(entries)]
        each = [(self._rotated(batch, keys), values) for keys, values in plain]
        importances = [
            None if kv.importance is None else aligner.importance(kv.importance, batch[f"t{number}.iou"])
            for number, (aligner, kv) in enumerate(zip(self.aligners, entries, strict=True))
        ]
        weights, has_token = self.fusion(query, temperature), torch.stack(present, dim=-1)
        if self.settings.fusion != "fixed":  # a softmax may round to 0, but a token's only teacher must count
            weights = weights.clamp(min=MIN_TEACHER_WEIGHT)
        keys, values = (self._fused([kv[part] for kv in each], weights, has_token) for part in (0, 1))
        known = [weight for weight in importances if weight is not None]
        return Blend(
            TeacherKV(keys, values, self._fused(known, weights.detach(), has_token) if known else None),
            weights,
            [TeacherKV(*kv, weight) for kv, weight in zip(each, importances, strict=True)],
            present,
            self._guard(plain, present),
        )

    def align(self, number: int, batch: Batch, kv: TeacherKV) -> tuple[Layers, Layers]:
        """One teacher at the student's tokens and layers: keys (not rotated) and values in its shape, or codes twice."""
        aligner, iou = self.aligners[number], batch[f"t{number}.iou"]
        if self.coder is None:
            return aligner(kv.keys, kv.values, iou)
        codes = self.coder(*aligner.along(kv.keys, kv.values, iou), number)
        return codes, codes

    def student_codes(self, batch: Batch, keys: Layers, values: Layers) -> Layers:
        """The student's keys and values as codes."""
        assert self.coder is not None
        return self.coder(self.unrotated(batch, keys), values)

    def unrotated(self, batch: Batch, keys: Layers) -> Layers:
        """The student's keys as they were before its rotary embedding."""
        return before_rotary(keys, self.rotary, _places(batch))

    def _rotated(self, batch: Batch, keys: Layers) -> Layers:
        if self.rotary is None or self.codes:
            return keys
        cos, sin = self.rotary.angles(_places(batch))
        return [rotate(key, cos, sin) for key in keys]

    def _fused(self, parts: list[Layers], weights: Tensor, present: Tensor) -> Layers:
        """Layer by layer; importance [B, H, N] is fused like an entry of size 1."""
        fused = []
        for layer, entries in enumerate(zip(*parts, strict=True)):
            own = weights[:, layer if weights.shape[1] > 1 else 0]
            flat = entries[0].dim() == 3
            whole = fuse([entry[..., None] if flat else entry for entry in entries], own, present)
            fused.append(whole[..., 0] if flat else whole)
        return fused

    # -- what keeps trained targets from shrinking to a point, or growing ----------------------------------------------------

    def _guard(self, plain: list[tuple[Layers, Layers]], present: list[Tensor]) -> Tensor:
        total = plain[0][1][0].new_zeros((), dtype=torch.float32)
        for kv, mask in zip(plain, present, strict=True):
            for part, layer in self.compared if self.guarded else ():
                around = self.reference[part, layer], self.guard_most
                total = total + variance_guard(flatten_heads(kv[part][layer]), mask, *around)
        return total

    def variation(self, blend: Blend) -> tuple[float, int]:
        """Sum and number of what the guard looks at, of values (or codes): 1 is what the student's entries had."""
        total, several, last = 0.0, 0, self.reference[-1]
        layers = [layer for part, layer in self.compared if part == len(self.reference) - 1] if self.guarded else []
        for kv, mask in zip(blend.each, blend.present, strict=True):
            several += int((mask.sum(1) > 1).sum()) * len(layers)
            for layer in layers:
                total += float(variation(flatten_heads(kv.values[layer]), mask, last[layer]))
        return total, several

    def guard_count(self, batch: Batch) -> float:
        several = sum(float((present_in(batch, number).sum(1) > 1).sum()) for number in range(len(self.names)))
        return several * len(self.compared)

    # -- since the first update ----------------------------------------------------------------------------------

    def remember_start(self, measured: dict[str, float] | None) -> None:
        """What held-out examples cost before the first update: a resumed run knows it from its checkpoint."""
        if measured is not None and "kv_unexplained" in measured:  # none where targets do not vary at all
            self.initial_kv_loss.copy_(torch.tensor([measured["kv"], measured["kv_unexplained"]]))

    def since_start(self, measured: dict[str, float]) -> dict[str, float]:
        """kv_start and kv_unexplained_start, for comparison with kv and kv_unexplained."""
        if bool(self.initial_kv_loss[0].isnan()) or "kv_unexplained" not in measured:
            return {}
        return dict(zip(("kv_start", "kv_unexplained_start"), self.initial_kv_loss.tolist(), strict=True))
