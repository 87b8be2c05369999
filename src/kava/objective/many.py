"""The explicit line with several teachers: the fused one takes the place of the single one, the rest is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass
from kava.config import Recipe
from kava.config.fields import DISTANCES
from kava.fuse import Query
from kava.losses.entropy import entropy_term
from kava.losses.zspace import LEAST, z_loss
from kava.objective.aux_terms import Layers, Seen, cka_layers
from kava.objective.calibration import calibrate, find_prototypes
from kava.objective.compare import Coded, Compared, make_bridge
from kava.objective.mixture import Blend, embedded_query, make_mixture, pool_query
from kava.objective.pairing import Pairing
from kava.objective.records import Batch
from kava.objective.schedule import layer_weights
from kava.objective.step_metrics import StepMetrics
from kava.objective.tokens import TokensObjective
from kava.teachers.base import TeacherWants
from kava.teachers.live import pooled_values
from kava.teachers.teacher_set import TeacherSet


@dataclass(frozen=True)
class SeenMany(Seen):
    """The fused teacher, and how it came about."""

    blend: Blend


class ManyObjective(TokensObjective):
    """`teacher` is a `Many`, or None where no term asks for one."""

    def __init__(self, model: LatentModel, recipe: Recipe, teacher: TeacherSet | None):
        super().__init__(model, recipe, teacher)
        self.watched = StepMetrics(recipe.mixture.collapse_alarm)

    def _meet(self, teacher: TeacherSet, recipe: Recipe) -> None:  # type: ignore[override]
        shape, self.mixing = self.student_shape, recipe.mixture
        self.mixture = make_mixture(recipe, self.model, teacher)
        self.map = [[(layer, 1.0)] for layer in range(shape.num_layers)]
        if recipe.mixture.space == "z":
            self.bridge = Coded(recipe.explicit, recipe.projector, shape, recipe.mixture.z_size)
        else:
            self.bridge = make_bridge(recipe.explicit, recipe.projector, shape, shape)
        whole = [*range(shape.num_layers)] if recipe.explicit.use_all_layers else [shape.num_layers - 1]
        more = cka_layers(recipe.explicit.cka_layers, shape.num_layers) if self._cka else []
        self.mixture.restrict(self.bridge.parts, getattr(self.bridge, "layers", whole), more)
        self.bridge.target_is_trained = self.mixture.target_is_trained

    # -- the loss ------------------------------------------------------------------------------------------------

    @property
    def wants(self) -> TeacherWants:
        return replace(super().wants, rotary=False)

    def compared(self, batch: Batch) -> Tensor:
        return self.mixture.columns(batch)

    def shares(self) -> list[float]:
        """The first third of the layers first, where the recipe says so."""
        layers = getattr(self.bridge, "layers", None)
        if layers is None:  # one vector of all layers
            return super().shares()
        return layer_weights(self.progress, layers, self.student_shape.num_layers, self.mixing.layer_warmup)

    def see(self, batch: Batch, text: TextPass) -> SeenMany:
        assert self.teacher is not None
        blend = self.mixture(batch, self._query(batch, text), self.teacher(batch, self.wants), self.temperature)
        return SeenMany(blend.kv, self.compared(batch), blend)

    def counts(self, batch: Batch) -> dict[str, float]:
        counts = super().counts(batch)
        if self.teacher is None:
            return counts
        if self.mixing.space == "z":
            pairs = self.pairing.counts(self.compared(batch), self.samples(batch))
            counts["kv"] = float((pairs >= LEAST[self.mixing.z_loss]).sum()) * sum(self.shares())
        if self.mixture.guarded:
            counts["guard"] = self.mixture.guard_count(batch)
        if self.mixing.entropy != "none":
            counts["entropy"] = float(len(batch["question"]))
        return counts

    def _taught(self, batch: Batch, text: TextPass, seen: Seen) -> Iterator[tuple[str, Tensor, float]]:
        assert isinstance(seen, SeenMany)
        yield from super()._taught(batch, text, seen)
        if self.mixture.guarded:
            yield "guard", seen.blend.guard, self.mixture.guard_weight
        if self.mixing.entropy != "none":
            term = entropy_term(seen.blend.weights, self.mixing.entropy, seen.mask)
            yield "entropy", term, self.mixing.entropy_weight
        if self.watch:
            self.watched.weights(seen.blend.weights.expand(len(seen.mask), -1, -1, -1), seen.mask)

    def pairs(
        self, batch: Batch, keys: Layers, values: Layers, seen: Seen, pairing: Pairing, weighted: bool = False
    ) -> Iterator[Compared]:
        own = self.mixture.student_side(batch, keys, values)
        return super().pairs(batch, *own, seen, pairing, weighted)

    def note_layer(self, one: Compared, distance: Tensor) -> None:
        if self.watch:
            kept = float(one.kept.sum())
            if self.mixing.space == "z":
                kept = float((one.kept[:, 0].sum(1) >= LEAST[self.mixing.z_loss]).sum())
            elif self.loss.kv_loss_type in DISTANCES:
                kept *= one.student.shape[-1]
            self.watched.layer(one.part, one.place, float(distance.detach()), kept)

    def _distance(self, one: Compared) -> Tensor:
        if one.part == "z":
            return z_loss(one.student[:, 0], one.target[:, 0], one.kept[:, 0], self.mixing.z_loss)
        return super()._distance(one)

    # -- what the weights depend on ------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        return self.mixture.temperature(self.epoch)

    def _query(self, batch: Batch, text: TextPass) -> Query:
        """Of the question, and for weights per token of the chain of thought up to each token; never of the answer."""
        mixing, mask = self.mixing, batch["question_mask"]
        if mixing.fusion == "fixed":
            return Query()
        if mixing.fusion == "similarity":
            asked = [value[:, :, text.question] for value in text.out.values]
            return Query(values=pooled_values(asked, mask, self.mixture.pooling).detach())
        if mixing.query == "hidden":
            return pool_query(text.out.hidden[:, text.question], mask, text.out.hidden[:, text.cot])
        return embedded_query(self.model, batch)

    # -- before the first update ---------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """What the guard holds each teacher against, and where adapters start."""
        if self.teacher is not None:
            was = self.training
            self.eval()
            match = self.settings.match_start and self.mixture.trained
            calibrate(self.mixture, self.model, self.teacher, list(batches), match)
            self.train(was)

    def find_prototypes(self, batches: Iterable[Batch]) -> None:
        """similarity: from training examples, what stands for each teacher."""
        if self.teacher is not None:
            find_prototypes(self.mixture, self.teacher, batches)
