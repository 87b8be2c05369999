"""The whole loss on one screen: what the student is compared with, and every term of it (docs/paper-map.md)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kava.backbone.model import plain_name
from kava.compress import Samples
from kava.config import ExplicitConfig, LossConfig
from kava.losses import Head, Term, cross_entropy
from kava.losses.guard import variance_guard
from kava.objective.aux_terms import AuxTerm
from kava.objective.compare import Comparison, KVComparison, Sides
from kava.objective.dim_scale import DimScale
from kava.objective.distances import ByDirection, ByNumber, Distance
from kava.objective.kv_shares import Place, kv_shares
from kava.objective.ramps import layer_weights, ramp_value
from kava.objective.records import Batch, Result, Step, Targets
from kava.objective.student import View
from kava.objective.targets import MixtureOfTeachers, TargetSource
from kava.teachers.base import TeacherWants

NO_STEP = Step()
SMOOTH_L1, COSINE = ByNumber(), ByDirection("cosine")


class Objective(nn.Module):
    """L = CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV + aux terms, for any view of the student and any source
    of targets. One forward is one micro-batch: DDP sees one forward per backward, and every pass inside it."""

    def __init__(
        self,
        view: View,
        loss: LossConfig,
        source: TargetSource | None = None,
        compare: Comparison | None = None,
        distance: Distance = SMOOTH_L1,
        aux_terms: Mapping[str, AuxTerm] | None = None,
        explicit: ExplicitConfig | None = None,
        layer_warmup: float = 0.0,
        seed: int = 0,
        kv_scale: DimScale | None = None,
    ):
        """source None: cross-entropy alone. compare None: no KV term. kv_scale: of each dimension, in the KV term."""
        super().__init__()
        self.model, self.view, self.loss, self.seed = view.model, view, loss, seed
        self.source: TargetSource | None = source
        self.compare, self.distance, self.kv_scale = compare, distance, kv_scale
        self.aux_terms: Mapping[str, AuxTerm] = nn.ModuleDict(aux_terms)  # type: ignore[assignment,arg-type]
        self.explicit, self.layer_warmup = explicit or ExplicitConfig(), layer_warmup
        self.to(self.model.device)

    def forward(self, batch: Batch, step: Step = NO_STEP, counts: dict[str, float] | None = None) -> Result:
        """The terms of a micro-batch, and figures for the log. `counts`: what `counts(batch, step)` gave, if it was called."""
        counts = self.counts(batch, step) if counts is None else counts
        batch = self.view.at(batch, step)
        student, own_teacher = views = self.view(batch)
        terms: list[tuple[str, Tensor, float]] = []
        kv_parts: dict[Place, Tensor] = {}
        head = self.model.output_head()
        if student is not None:
            weight = self.loss.student_ce * ramp_value(step.progress, self.explicit.ce_ramp)
            terms.append(("ce_student", self._ce(student.targets, head), weight))
        if own_teacher is not None:
            terms.append(("ce_teacher", self._ce(own_teacher.targets, head), self.loss.teacher_ce))
        if student is not None and self.source is not None:
            target = self.source(batch, views, self.teacher_wants(step), step)
            for name, term in self.aux_terms.items():
                terms.append((name, term(batch, student, target), term.weight(step)))
            if self.compare is not None:
                sides = Sides(batch, student, target, self.samples(batch, step), self._weighted(step))
                terms += self._kv_terms(self.compare(sides), step, kv_parts)
            terms += self.source.terms(target, step)
        health = self.view.health(student, self._pair_counts(batch, step)) if student is not None and step.log else {}
        health |= kv_shares(kv_parts)
        return Result([Term(name, total, counts[name], weight) for name, total, weight in terms], health)

    def _ce(self, targets: Targets, head: Head) -> Tensor:
        return cross_entropy(targets.hidden, targets.tokens, head)

    def _kv_terms(
        self, pairs: Iterator[KVComparison], step: Step, parts: dict[Place, Tensor]
    ) -> list[tuple[str, Tensor, float]]:
        """The KV term over all compared layers and kinds, and what is taken from the same comparisons; where figures are
        wanted, `parts` gets each one's sum."""
        assert self.compare is not None
        kv = cosine = guard = torch.zeros((), device=self.model.device)
        of_layer, of_kind, detach = self._layer_weights(step), self._kind_weights(), not self.target_is_trained
        for pair in pairs:
            weight = of_layer[pair.layer] * of_kind[pair.kind]
            scaled = pair if self.kv_scale is None else self.kv_scale(pair)
            distance = self.distance(scaled, detach)
            kv = kv + weight * distance
            if step.log:
                parts[pair.kind, pair.layer] = weight * distance.detach()
            if self.explicit.beta_cos > 0:
                cosine = cosine + weight * COSINE(scaled, detach)
            if self.compare.guarded:
                around = self.compare.reference_of(pair), self.compare.guard_most
                guard = guard + variance_guard(pair.target[:, 0], pair.kept[:, 0], *around)
            if step.log and self.mixture is not None:
                count = self.distance.count(pair.kept[:, 0].sum(1), pair.kept.shape[1], pair.student.shape[-1])
                self.mixture.metrics.layer(pair.kind, pair.layer, float(distance.detach()), count)
        terms = [("kv", kv, self.loss.alpha2_kv)]
        if self.explicit.beta_cos > 0:
            terms.append(("kv_cosine", cosine, self.explicit.beta_cos * self.loss.alpha2_kv))
        if self.compare.guarded:
            terms.append(("guard", guard, self.compare.guard_weight))
        return terms

    # -- what the sums are divided by ----------------------------------------------------------------------------

    def counts(self, batch: Batch, step: Step = NO_STEP) -> dict[str, float]:
        """What each term's sum is divided by, from the batch alone."""
        batch = self.view.at(batch, step)
        counts = self.view.counts(batch)
        if self.source is None:
            return counts
        mask = self.source.columns(batch)
        counts |= {name: term.count(batch, mask) for name, term in self.aux_terms.items()}
        if self.compare is not None:
            pairs = self._pair_counts(batch, step)
            assert pairs is not None
            layers = list(zip(self._layer_weights(step), self.compare.sizes, strict=True))
            counts["kv"] = sum(weight * self.distance.count(pairs, *size) for weight, size in layers)
            if self.explicit.beta_cos > 0:
                counts["kv_cosine"] = sum(weight * COSINE.count(pairs, *size) for weight, size in layers)
            if self.compare.guarded:
                counts["guard"] = float((pairs > 1).sum()) * len(layers) * len(self.compare.kinds)
        return counts | self.source.counts(batch)

    def _pair_counts(self, batch: Batch, step: Step) -> Tensor | None:
        """[B] compared entries of a head, None without a KV term."""
        if self.compare is None or self.source is None:
            return None
        return self.compare.pair_counts(self.source.columns(batch), self.samples(batch, step))

    # -- weights -------------------------------------------------------------------------------------------------

    def _layer_weights(self, step: Step) -> list[float]:
        """The weight of each compared layer at this moment."""
        assert self.compare is not None
        count = len(self.compare.sizes)
        if self.layer_warmup == 0 or len(self.compare.layers) != count:  # one vector of all layers
            return [1.0] * count
        return layer_weights(step.progress, self.compare.layers, self.model.kv_shape.num_layers, self.layer_warmup)

    def _kind_weights(self) -> dict[str, float]:
        """The share of keys and of values (or of codes) in the KV term."""
        assert self.compare is not None
        weights = {"k": self.explicit.lambda_k, "v": self.explicit.lambda_v, "z": 1.0}
        return {kind: weights[kind] / len(self.compare.kinds) for kind in self.compare.kinds}

    def _weighted(self, step: Step) -> bool:
        """True if entries are weighted by the teacher's attention to them."""
        explicit = self.explicit
        return explicit.attention_weighted and step.update >= explicit.attention_weighted_after

    # -- what it is made of --------------------------------------------------------------------------------------

    def teacher_wants(self, step: Step = NO_STEP) -> TeacherWants:
        """What of a teacher is computed beside keys and values."""
        importance = self.compare is not None and (
            self.compare.needs_importance
            or self._weighted(step)
            or any(term.needs_importance for term in self.aux_terms.values())
        )
        return TeacherWants(importance=importance, cue="codi" in self.aux_terms)

    def samples(self, batch: Batch, step: Step = NO_STEP) -> Samples:
        """Example ids and step results of the batch, for compressors."""
        return Samples(batch["example_id"], batch["cot_result"], self.seed, step.epoch)

    @property
    def mixture(self) -> MixtureOfTeachers | None:
        return self.source if isinstance(self.source, MixtureOfTeachers) else None

    @property
    def target_is_trained(self) -> bool:
        """True if the gradient goes into the targets too: adapters or a projection make them."""
        assert self.source is not None
        assert self.compare is not None
        return self.source.target_is_trained or self.compare.target_is_trained

    def aux_state(self) -> dict[str, Tensor]:
        """What is trained or measured beside the student, by name; a tied weight once."""
        state = self.state_dict(keep_vars=True)
        beside = {id(value): name for name, value in reversed(state.items()) if not name.startswith("model.")}
        return {name: state[name] for name in reversed(beside.values())}

    def trained(self) -> dict[str, nn.Parameter]:
        return {plain_name(name): weight for name, weight in self.named_parameters() if weight.requires_grad}
