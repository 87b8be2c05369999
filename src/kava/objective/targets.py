"""Where the entries come from that the student is compared with: one call and one record, whatever the source."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kava.backbone.kv import unrotate
from kava.backbone.masks import positions
from kava.backbone.model import LatentModel
from kava.compress import importance
from kava.config import Recipe
from kava.fuse import Collapse, Query, Window
from kava.losses.entropy import entropy_term
from kava.objective.records import Batch, Step, StudentView, Views
from kava.teachers.base import KVShape, Teacher, TeacherKV, TeacherWants
from kava.teachers.live import pooled_values
from kava.teachers.mixture import Blend, Mixture, pool_query
from kava.teachers.teacher_set import TeacherSet


@dataclass(frozen=True)
class Target:
    """Entries at the CoT columns, the columns [B, N] that are compared, and for a mixture how it came about."""

    kv: TeacherKV
    mask: Tensor
    blend: Blend | None = None


class TargetSource:
    """(batch, views of its passes, wants, step) -> Target. `shape`: sizes of its entries; `terms` and `counts` are
    those of what it trains itself, here nothing."""

    shape: KVShape
    target_is_trained = False

    def __call__(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        raise NotImplementedError

    def columns(self, batch: Batch) -> Tensor:
        """[B, N] the CoT columns that are compared, from the batch alone."""
        return batch["cot_mask"]

    def counts(self, batch: Batch) -> dict[str, float]:
        return {}

    def terms(self, target: Target, step: Step) -> Iterator[tuple[str, Tensor, float]]:
        """Name, sum and weight of each term of its own."""
        yield from ()


class OwnTeacher(TargetSource):
    """Entries of the student's own teacher mode, computed in the same passes; keys and values without gradient."""

    def __init__(self, model: LatentModel, rotary: str = "after"):
        self.model, self.shape = model, model.kv_shape
        self.rotary_before = rotary == "before" and model.family.rotary

    @torch.no_grad()
    def __call__(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        _, own_teacher = views
        if own_teacher is None:  # no term compares anything with it
            return Target(TeacherKV([], []), self.columns(batch))
        keys, values = ([entries.detach() for entries in part] for part in (own_teacher.keys, own_teacher.values))
        weights = None
        if wants.importance:
            answer, cot, scale, cap = batch["tail_answer"], batch["cot_mask"], self.model.scale, self.model.cap
            weights = [
                importance(query, key, answer, cot, scale, cap)
                for query, key in zip(own_teacher.queries, keys, strict=True)
            ]
        if self.rotary_before:
            place = positions(batch["cot_mask"], batch["question_mask"].sum(1))
            keys = [unrotate(key, self.model.decoder, place) for key in keys]
        return Target(TeacherKV(keys, values, weights, own_teacher.cue), self.columns(batch))


class SeparateTeacher(TargetSource):
    """A frozen model (`teachers/live.py`) or a folder of its entries (`teachers/store.py`). It is no module of the
    objective: nothing trains, saves or moves it."""

    def __init__(self, teacher: Teacher):
        self.teacher, self.shape = teacher, teacher.shape

    def __call__(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        return Target(self.teacher(batch, wants), self.columns(batch))


class StepMetrics:
    """Per-layer loss and teacher weights of the updates that are logged; emptied when they are written."""

    def __init__(self, alarm: float):
        self._sums: dict[tuple[str, int], list[float]] = {}
        self.weights = Collapse(alarm)

    def layer(self, kind: str, layer: int, total: float, count: float) -> None:
        sums = self._sums.setdefault((kind, layer), [0.0, 0.0])
        sums[0] += total
        sums[1] += count

    def drain(self) -> tuple[dict[str, list[float | None]], Window | None]:
        """Mean loss per kind and compared layer, and the window of weights; the sums start again at 0."""
        layers: dict[str, list[float | None]] = {}
        for (kind, _), (total, count) in sorted(self._sums.items()):
            layers.setdefault(kind, []).append(total / count if count else None)
        self._sums = {}
        return layers, self.weights.close()


class MixtureOfTeachers(nn.Module, TargetSource):
    """Several teachers, each aligned to the student, weighted and summed (`teachers/mixture.py`)."""

    def __init__(self, recipe: Recipe, model: LatentModel, teachers: TeacherSet):
        super().__init__()
        self.settings, self.teachers, self.shape = recipe.mixture, teachers, model.kv_shape
        self.mixture = Mixture(recipe, model, teachers)
        self.metrics = StepMetrics(recipe.mixture.collapse_alarm)
        self._model = (model,)  # in a tuple: it is the objective's module already

    @property
    def target_is_trained(self) -> bool:  # type: ignore[override]
        return self.mixture.target_is_trained

    def forward(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        student, own_teacher = views
        assert student is not None
        entries = self.teachers(batch, replace(wants, cue=False, rotary=False))
        query, temperature = self._query(batch, student), self.mixture.temperature(step.epoch)
        blend = self.mixture(batch, query, entries, temperature)
        kv = blend.kv if own_teacher is None else replace(blend.kv, cue=own_teacher.cue)
        return Target(kv, self.columns(batch), blend)

    def columns(self, batch: Batch) -> Tensor:
        return self.mixture.columns(batch)

    def counts(self, batch: Batch) -> dict[str, float]:
        counts = {"guard": self.mixture.guard_count(batch)} if self.mixture.guarded else {}
        return counts | ({"entropy": float(len(batch["question"]))} if self.settings.entropy != "none" else {})

    def terms(self, target: Target, step: Step) -> Iterator[tuple[str, Tensor, float]]:
        """The guard on what each teacher's entries vary, and a push on the entropy of the weights."""
        assert target.blend is not None
        if self.mixture.guarded:
            yield "guard", target.blend.guard, self.mixture.guard_weight
        if self.settings.entropy != "none":
            term = entropy_term(target.blend.weights, self.settings.entropy, target.mask)
            yield "entropy", term, self.settings.entropy_weight
        if step.log:
            self.metrics.weights.add(target.blend.weights.expand(len(target.mask), -1, -1, -1), target.mask)

    def _query(self, batch: Batch, student: StudentView) -> Query:
        """What weights depend on: the question, and per token the chain of thought up to it; never the answer."""
        mask, text, model = batch["question_mask"], student.text, self._model[0]
        if self.settings.fusion == "fixed":
            return Query()
        if self.settings.fusion == "similarity":
            assert text is not None
            return Query(values=pooled_values(text.values("question"), mask, self.mixture.pooling).detach())
        if self.settings.query == "hidden":
            assert text is not None
            return pool_query(text.hidden("question"), mask, text.hidden("cot"))
        return pool_query(model.embed(batch["question"]), mask, model.embed(batch["cot"]))
