"""The explicit line on one screen: L = CE + alpha2 L_KV + alpha1 L_CODI [+ guard, CKA]  (docs/paper-map.md, section 11).

Student and frozen teacher read the same token ids. What the compressor keeps of the teacher's chain of thought is
compared with the student's keys and values at the same columns; cross-entropy on everything behind the question is the
anchor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kava.align import layer_map
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass, teacher_forced_pass
from kava.compress import Samples, make_compressor
from kava.config import Recipe
from kava.config.fields import DISTANCES
from kava.losses import Term, cross_entropy, kv_loss
from kava.losses.direction import direction_loss
from kava.losses.guard import variance_guard
from kava.objective.aux_terms import Layers, Seen, attention_term, cka_layers, cka_term, codi_term, make_codi_map
from kava.objective.compare import TO_STUDENT, Bridge, Compared, make_bridge
from kava.objective.moments import Moments
from kava.objective.pairing import Pairing
from kava.objective.records import Batch, Result
from kava.objective.schedule import ramp_value
from kava.objective.unpacked import targets
from kava.teachers.base import Teacher, TeacherWants
from kava.teachers.live import shape_of

Place = tuple[str, int]  # keys or values, and the number of the compared layer
ATTENTION_SHARE = 0.5  # structural: weight of the attention maps beside the two cosines


class TokensObjective(nn.Module):
    """One forward is one micro-batch. The teacher is no module of it: nothing trains, saves or moves it."""

    reference: Tensor  # [2, places, d] where a projection is trained: see `calibrate`

    def __init__(self, model: LatentModel, recipe: Recipe, teacher: Any | None):
        super().__init__()
        self.model, self.teacher = model, teacher
        self.loss, self.explicit, self.settings = recipe.loss, recipe.explicit, recipe.projector
        self.seed = recipe.system.seed
        self.epoch = self.update = 0  # the trainer sets these four
        self.progress, self.watch = 0.0, True
        self.student_shape = shape = shape_of(model)
        keep = None if recipe.rkv.method == "full" else recipe.explicit.target_len
        compressor = make_compressor(recipe.rkv.method, lambda_=recipe.rkv.lambda_, side=recipe.rkv.crop_keep)
        self.pairing = Pairing(compressor, keep, recipe.rkv.shuffle)
        self.bridge: Bridge | None = None
        self.codi_map: nn.Module | None = None
        self.structural = recipe.loss.kv_loss_type == "structural"
        self.projects = self.guarded = False
        if teacher is not None:
            self._meet(teacher, recipe)
        self.cka_layers = cka_layers(recipe.explicit.cka_layers, shape.num_layers) if self._cka else []
        self.to(model.device)

    def _meet(self, teacher: Teacher, recipe: Recipe) -> None:
        """Makes what has to stand between this teacher and the student."""
        shape = self.student_shape
        self.map = layer_map(shape.num_layers, teacher.shape.num_layers, recipe.explicit.layer_map)
        if recipe.loss.alpha2_kv > 0:
            self.bridge = make_bridge(recipe.explicit, recipe.projector, shape, teacher.shape)
        if self._codi:
            self.codi_map = make_codi_map(recipe.projector, shape, teacher.shape)
        self.projects = self.bridge is not None and self.bridge.target_is_trained
        self.guarded = self.projects and self.settings.guard == "variance"
        if self.projects and self.bridge is not None:
            spread = torch.zeros(2, len(self.bridge.sizes), self.bridge.sizes[0][1])
            self.register_buffer("reference", spread)

    # -- the loss ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Result:
        text = teacher_forced_pass(self.model, batch, all_layers=self._codi)
        counts = self.counts(batch)
        aim = targets(text.out.hidden, text.ids, text.mask, slice(text.cot.start, text.tail.stop))
        terms = [
            Term(
                "ce_student",
                cross_entropy(aim.hidden, aim.tokens, self.model.head),
                counts["ce_student"],
                self.loss.student_ce * ramp_value(self.progress, self.explicit.ce_ramp),
            )
        ]
        if self.teacher is not None:
            taught = self._taught(batch, text, self.see(batch, text))
            terms += [Term(name, total, counts[name], weight) for name, total, weight in taught]
        return Result(terms, {})

    def see(self, batch: Batch, text: TextPass) -> Seen:
        """What the teacher shows of a batch."""
        assert self.teacher is not None
        return Seen(self.teacher(batch, self.wants), self.compared(batch))

    def compared(self, batch: Batch) -> Tensor:
        """[B, N] the columns of the chain of thought that are compared, from the batch alone."""
        return batch["cot_mask"]

    @property
    def wants(self) -> TeacherWants:
        kv = self.bridge is not None
        looked = kv and (self.pairing.compressor.needs_importance or self._weighted or self._attends)
        return TeacherWants(importance=looked, cue=self._codi)

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term's sum is divided by, from the batch alone."""
        counts = {"ce_student": float(batch["cot_mask"].sum() + batch["tail_mask"].sum())}
        if self.teacher is None:
            return counts
        mask = self.compared(batch)
        if self._codi:
            counts["codi"] = float(len(mask) * self.model.num_layers * self.teacher.shape.hidden_size)
        if self._cka:
            counts["cka"] = float((mask.sum(1) > 1).sum()) * len(self.cka_layers)
        if self.bridge is not None:
            pairs = self.pairing.counts(mask, self.samples(batch))
            elements = self.loss.kv_loss_type in DISTANCES
            sizes = [(share * g, d) for share, (g, d) in zip(self.shares(), self.bridge.sizes, strict=True)]
            counts["kv"] = float(pairs.sum()) * sum(g * (d if elements else 1) for g, d in sizes)
            if self.explicit.beta_cos > 0:
                counts["kv_cosine"] = float(pairs.sum()) * sum(g for g, _ in sizes)
            several = float((pairs > 1).sum()) * len(self.bridge.sizes) * len(self.bridge.parts)
            counts |= {"guard": several} if self.guarded else {}
            if self._attends:
                counts["attention"] = float(mask.any(1).sum()) * self.model.num_layers
        return counts

    def shares(self) -> list[float]:
        """The weight of each compared layer at this moment."""
        assert self.bridge is not None
        return [1.0] * len(self.bridge.sizes)

    def _taught(self, batch: Batch, text: TextPass, seen: Seen) -> Iterator[tuple[str, Tensor, float]]:
        keys, values = self.cot_kv(text)
        if self._codi:
            yield "codi", codi_term(batch, text, seen.kv, self.map, self.codi_map, self.loss), self.loss.alpha1_codi
        if self._cka:
            yield "cka", cka_term(keys, seen, self.map, self.cka_layers), self.explicit.cka_weight
        if self.bridge is None:
            return
        kv = cosine = guard = text.out.hidden.new_zeros((), dtype=torch.float32)
        shares, parts = self.shares(), self._part_weights()
        for one in self.pairs(batch, keys, values, seen, self.pairing, self._weighted):
            share = shares[one.place] * parts[one.part]
            distance = self._distance(one)
            kv = kv + share * distance
            if self.explicit.beta_cos > 0:
                cosine = cosine + share * self._direction(one, "cosine")
            if self.guarded:
                reference = self.reference[int(one.part == "v"), one.place]
                guard = guard + variance_guard(one.target[:, 0], one.kept[:, 0], reference)
            self.note_layer(one, distance)
        yield "kv", kv, self.loss.alpha2_kv
        if self.explicit.beta_cos > 0:
            yield "kv_cosine", cosine, self.explicit.beta_cos * self.loss.alpha2_kv
        if self.guarded:
            yield "guard", guard, self.settings.guard_weight
        if self._attends:
            weight = ATTENTION_SHARE * self.loss.alpha2_kv if self.structural else 0.0
            weight += self.explicit.gamma_kl * ramp_value(self.progress, self.explicit.gamma_ramp)
            yield "attention", attention_term(batch, text, keys, seen, self.map, self.model.scale), weight

    def pairs(
        self, batch: Batch, keys: Layers, values: Layers, seen: Seen, pairing: Pairing, weighted: bool = False
    ) -> Iterator[Compared]:
        """Every comparison of the student's keys and values (at the CoT columns) with what is seen."""
        assert self.bridge is not None
        return self.bridge.compare(keys, values, seen.kv, seen.mask, self.samples(batch), pairing, weighted)

    def note_layer(self, one: Compared, distance: Tensor) -> None:
        """Called with every comparison of a step; a mixture writes them down."""

    def _part_weights(self) -> dict[str, float]:
        assert self.bridge is not None
        whole = {"k": self.explicit.lambda_k, "v": self.explicit.lambda_v, "z": 1.0}
        return {part: whole[part] / len(self.bridge.parts) for part in self.bridge.parts}

    @property
    def _detached(self) -> bool:
        return not (self.bridge is not None and self.bridge.target_is_trained)

    def _distance(self, one: Compared) -> Tensor:
        loss = self.loss
        if loss.kv_loss_type not in DISTANCES:
            return self._direction(one, "cosine" if self.structural else loss.kv_loss_type)
        return kv_loss(
            one.student,
            one.target,
            one.kept,
            loss.kv_loss_type,
            loss.layerwise_std,
            loss.std_scope,
            one.weight,
            self._detached,
        )

    def _direction(self, one: Compared, kind: str) -> Tensor:
        return direction_loss(one.student, one.target, one.kept, kind, detach=self._detached, weight=one.weight)[0]

    # -- what it is made of --------------------------------------------------------------------------------------

    def cot_kv(self, text: TextPass) -> tuple[Layers, Layers]:
        """The student's keys and values at the CoT columns."""
        out = text.out
        return [key[:, :, text.cot] for key in out.keys], [value[:, :, text.cot] for value in out.values]

    def samples(self, batch: Batch) -> Samples:
        return Samples(batch["example_id"], batch["cot_result"], self.seed, self.epoch)

    def aux_state(self) -> dict[str, Tensor]:
        """What is trained or measured beside the student: projector, layer weights, CODI's map, the guard's reference."""
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if not name.startswith("model.")}

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Before the first update, from a few batches: what a projector on the teacher's side is held against.

        `reference`: how much the student's entries vary within a sample, mean over samples; a projected target that
        varies much less has collapsed. With `match_start` the projector begins with their mean and spread: a random
        start would drag the student to a random place first.
        """
        if self.bridge is None or self.teacher is None or self.settings.direction != TO_STUDENT:
            return
        within: dict[Place, Tensor] = {}
        seen: dict[Place, list[Moments]] = {}
        counted: dict[Place, int] = {}
        was = self.training
        self.eval()  # dropout would pass for variety
        for batch in batches:
            text = teacher_forced_pass(self.model, batch)
            everything = Pairing(self.pairing.compressor, None)
            for one in self.pairs(batch, *self.cot_kv(text), self.see(batch, text), everything):
                place = one.part, one.place
                for entries, kept in zip(one.student[:, 0], one.kept[:, 0], strict=True):
                    if kept.sum() > 1:
                        within[place] = within.get(place, 0) + entries[kept].cpu().double().std(0)
                        counted[place] = counted.get(place, 0) + 1
                for moments, side in zip(
                    seen.setdefault(place, [Moments(), Moments()]), (one.student, one.target), strict=True
                ):
                    moments.add(side[one.kept])
        self.train(was)
        for (part, number), (mine, theirs) in seen.items():
            projector = self.bridge.projector_at(number)
            if self.settings.match_start and projector is not None and mine.count > 1:
                gain = mine.std / theirs.std.clamp(min=1e-12)
                projector.rescale(part.upper(), gain, mine.mean - gain * theirs.mean)
        if self.projects:
            for place, total in within.items():
                self.reference[int(place[0] == "v"), place[1]] = (total / counted[place]).to(self.reference)

    @property
    def _codi(self) -> bool:
        return self.teacher is not None and self.loss.alpha1_codi > 0

    @property
    def _cka(self) -> bool:
        return self.teacher is not None and self.explicit.cka_weight > 0

    @property
    def _attends(self) -> bool:
        return self.structural or self.explicit.gamma_kl > 0

    @property
    def _weighted(self) -> bool:
        return self.explicit.attention_weighted and self.update >= self.explicit.attention_weighted_after
