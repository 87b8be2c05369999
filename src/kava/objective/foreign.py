"""Foreign teachers of the latent line: their fused chain of thought is what the latents are compared with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kava.backbone.model import LatentModel
from kava.config import Recipe
from kava.losses import Term
from kava.losses.entropy import entropy_term
from kava.objective.calibration import calibrate
from kava.objective.mixture import Blend, embedded_query, make_mixture
from kava.objective.records import Batch
from kava.objective.step_metrics import StepMetrics
from kava.teachers.base import TeacherWants
from kava.teachers.teacher_set import TeacherSet


class ForeignTeachers(nn.Module):
    """The mixture, and the terms that stand beside the KV term. The student's model is none of its modules."""

    def __init__(self, recipe: Recipe, model: LatentModel, teachers: TeacherSet, importance: bool):
        super().__init__()
        self.config, self.match = recipe.mixture, recipe.projector.match_start
        self.mixture = make_mixture(recipe, model, teachers)
        self.watched = StepMetrics(recipe.mixture.collapse_alarm)
        self.wants = TeacherWants(importance=importance, rotary=False)
        self.teachers = teachers
        self._model = (model,)  # in a tuple, so that it is not registered twice
        self.to(model.device)

    def blend(self, batch: Batch, epoch: int) -> Blend:
        query = embedded_query(self._model[0], batch)
        return self.mixture(batch, query, self.teachers(batch, self.wants), self.mixture.temperature(epoch))

    def counts(self, batch: Batch) -> dict[str, float]:
        found = {"guard": self.mixture.guard_count(batch)} if self.mixture.guarded else {}
        return found | ({"entropy": float(len(batch["question"]))} if self.config.entropy != "none" else {})

    def terms(self, blend: Blend, batch: Batch, counts: dict[str, float], watch: bool) -> list[Term]:
        """Guard and entropy; what a log line will say of the weights is noted."""
        terms, mask = [], self.mixture.columns(batch)
        if self.mixture.guarded:
            terms.append(Term("guard", blend.guard, counts["guard"], self.mixture.guard_weight))
        if self.config.entropy != "none":
            push = entropy_term(blend.weights, self.config.entropy, mask)
            terms.append(Term("entropy", push, counts["entropy"], self.config.entropy_weight))
        if watch:
            self.watched.weights(blend.weights.expand(len(mask), -1, -1, -1), mask)
        return terms

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Against what the student's own teacher mode has at the chain of thought, before training."""
        model = self._model[0]
        was = model.training
        model.eval()
        calibrate(self.mixture, model, self.teachers, list(batches), self.match and self.mixture.trained)
        model.train(was)
