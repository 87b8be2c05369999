"""The explicit line on one screen: L = CE + alpha2 L_KV + alpha1 L_CODI [+ guard, CKA]  (docs/paper-map.md, section 11).

Student and frozen teacher read the same token ids. What the compressor keeps of the teacher's chain of thought is
compared with the student's keys and values at the same columns; cross-entropy on everything behind the question is the
anchor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from kava.align import flatten_heads, layer_map, mix
from kava.backbone.model import LatentModel
from kava.backbone.reading import Reading, cue_states, read_text
from kava.compress import Samples, importance, make_compressor
from kava.config import Recipe
from kava.config.fields import DISTANCES
from kava.errors import ConfigError
from kava.losses import Term, codi_loss, cross_entropy, kv_loss
from kava.losses.cka import cka
from kava.losses.direction import direction_loss
from kava.losses.guard import variance_guard
from kava.objectives.bridge import TO_STUDENT, Compared, make_bridge
from kava.objectives.pairing import Pairing
from kava.objectives.unpacked import targets
from kava.objectives.views import Batch, Result
from kava.teachers.base import KVShape, Teacher, TeacherKV, TeacherWants
from kava.teachers.live import shape_of

Place = tuple[str, int]  # keys or values, and the number of the compared layer
ATTENTION_SHARE = 0.5  # structural: weight of the attention maps beside the two cosines


class TokensObjective(nn.Module):
    """One forward is one micro-batch. The teacher is no module of it: nothing trains, saves or moves it."""

    reference: Tensor  # [2, places, d] where a projection is trained: see `calibrate`

    def __init__(self, model: LatentModel, recipe: Recipe, teacher: Teacher | None):
        super().__init__()
        self.model, self.teacher = model, teacher
        self.loss, self.explicit, self.settings = recipe.loss, recipe.explicit, recipe.projector
        self.seed = recipe.system.seed
        self.epoch = self.update = 0  # the trainer sets these three
        self.watch = True
        self.student_shape = shape = shape_of(model)
        keep = None if recipe.rkv.method == "full" else recipe.explicit.target_len
        compressor = make_compressor(recipe.rkv.method, lambda_=recipe.rkv.lambda_, side=recipe.rkv.crop_keep)
        self.pairing = Pairing(compressor, keep, recipe.rkv.shuffle)
        self.bridge = None
        self.codi_map: nn.Module | None = None
        self.structural = recipe.loss.kv_loss_type == "structural"
        if teacher is not None:
            self.map = layer_map(shape.num_layers, teacher.shape.num_layers, recipe.explicit.layer_map)
            if recipe.loss.alpha2_kv > 0:
                self.bridge = make_bridge(recipe.explicit, recipe.projector, shape, teacher.shape)
            self.codi_map = self._make_codi_map(shape, teacher.shape)
        self.projects = self.bridge is not None and self.bridge.target_is_trained
        self.guarded = self.projects and self.settings.guard == "variance"
        if self.projects and self.bridge is not None:
            spread = torch.zeros(2, len(self.bridge.sizes), self.bridge.sizes[0][1])
            self.register_buffer("reference", spread)
        self.cka_layers = _cka_layers(recipe.explicit.cka_layers, shape.num_layers) if self._cka else []
        self.to(model.device)

    # -- the loss ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Result:
        text = read_text(self.model, batch, all_layers=self._codi)
        counts = self.counts(batch)
        aim = targets(text.out.hidden, text.ids, text.mask, slice(text.cot.start, text.tail.stop))
        terms = [
            Term(
                "ce_student",
                cross_entropy(aim.hidden, aim.tokens, self.model.head),
                counts["ce_student"],
                self.loss.student_ce,
            )
        ]
        if self.teacher is not None:
            seen = self.teacher(batch, self.wants)
            terms += [
                Term(name, total, counts[name], weight) for name, total, weight in self._taught(batch, text, seen)
            ]
        return Result(terms, {})

    @property
    def wants(self) -> TeacherWants:
        kv = self.bridge is not None
        looked = kv and (self.pairing.compressor.needs_importance or self._weighted or self.structural)
        return TeacherWants(importance=looked, cue=self._codi)

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term's sum is divided by, from the batch alone."""
        mask = batch["cot_mask"]
        counts = {"ce_student": float(mask.sum() + batch["tail_mask"].sum())}
        if self.teacher is None:
            return counts
        if self._codi:
            counts["codi"] = float(len(mask) * self.model.num_layers * self.teacher.shape.hidden_size)
        if self._cka:
            counts["cka"] = float((mask.sum(1) > 1).sum()) * len(self.cka_layers)
        if self.bridge is not None:
            pairs = self.pairing.counts(mask, self.samples(batch))
            elements = self.loss.kv_loss_type in DISTANCES
            counts["kv"] = float(pairs.sum()) * sum(g * (d if elements else 1) for g, d in self.bridge.sizes)
            several = float((pairs > 1).sum()) * len(self.bridge.sizes) * len(self.bridge.parts)
            counts |= {"guard": several} if self.guarded else {}
            if self.structural:
                counts["attention"] = float(mask.any(1).sum()) * self.model.num_layers
        return counts

    def _taught(self, batch: Batch, text: Reading, seen: TeacherKV) -> Iterator[tuple[str, Tensor, float]]:
        keys, values = self.cot_kv(text)
        if self._codi:
            yield "codi", self._codi_loss(batch, text, seen), self.loss.alpha1_codi
        if self._cka:
            yield "cka", self._cka_loss(batch, keys, seen), self.explicit.cka_weight
        if self.bridge is None:
            return
        zero = text.out.hidden.new_zeros((), dtype=torch.float32)
        kv, guard = zero, zero
        mask, samples = batch["cot_mask"], self.samples(batch)
        for one in self.bridge.compare(keys, values, seen, mask, samples, self.pairing, self._weighted):
            kv = kv + self._distance(one) / len(self.bridge.parts)
            if self.guarded:
                reference = self.reference[int(one.part == "v"), one.place]
                guard = guard + variance_guard(one.target[:, 0], one.kept[:, 0], reference)
        yield "kv", kv, self.loss.alpha2_kv
        if self.guarded:
            yield "guard", guard, self.settings.guard_weight
        if self.structural:
            yield "attention", self._attention(batch, text, keys, seen), ATTENTION_SHARE * self.loss.alpha2_kv

    def _distance(self, one: Compared) -> Tensor:
        loss, detach = self.loss, not (self.bridge is not None and self.bridge.target_is_trained)
        if loss.kv_loss_type in DISTANCES:
            return kv_loss(
                one.student,
                one.target,
                one.kept,
                loss.kv_loss_type,
                loss.layerwise_std,
                loss.std_scope,
                one.weight,
                detach,
            )
        kind = "cosine" if self.structural else loss.kv_loss_type
        return direction_loss(one.student, one.target, one.kept, kind, detach=detach, weight=one.weight)[0]

    def _codi_loss(self, batch: Batch, text: Reading, seen: TeacherKV) -> Tensor:
        """Hidden states at the last cue token, layer by layer, in the teacher's width."""
        assert seen.cue is not None
        mine = cue_states(text.out, text.tail.start + batch["cue_last"])
        if self.codi_map is not None:
            mine = self.codi_map(mine.to(next(self.codi_map.parameters()).dtype))
        layers = list(seen.cue.unbind(1))
        target = torch.stack([mix(layers, entry) for entry in self.map], dim=1)
        loss = self.loss
        return codi_loss(mine, target, loss.codi_loss_type, loss.layerwise_std, loss.std_scope)

    def _cka_loss(self, batch: Batch, keys: list[Tensor], seen: TeacherKV) -> Tensor:
        total = keys[0].new_zeros((), dtype=torch.float32)
        for layer in self.cka_layers:
            mine, theirs = flatten_heads(keys[layer]), flatten_heads(mix(seen.keys, self.map[layer]))
            total = total + (1 - cka(mine, theirs, batch["cot_mask"]))[batch["cot_mask"].sum(1) > 1].sum()
        return total

    def _attention(self, batch: Batch, text: Reading, keys: list[Tensor], seen: TeacherKV) -> Tensor:
        """sum KL(teacher || student) of what the answer looks at in the chain of thought, heads averaged."""
        assert seen.importance is not None
        total = keys[0].new_zeros((), dtype=torch.float32)
        for layer, entry in enumerate(self.map):
            query = text.out.queries[layer][:, :, text.tail]
            mine = importance(query, keys[layer], batch["tail_answer"], batch["cot_mask"], self.model.scale).mean(1)
            theirs = mix(seen.importance, entry).mean(1)
            real = batch["cot_mask"] & (theirs > 0)
            ratio = theirs.clamp(min=1e-12).log() - mine.clamp(min=1e-12).log()
            total = total + (theirs * ratio).masked_fill(~real, 0.0).sum()
        return total

    # -- what it is made of --------------------------------------------------------------------------------------

    def cot_kv(self, text: Reading) -> tuple[list[Tensor], list[Tensor]]:
        """The student's keys and values at the CoT columns."""
        out = text.out
        return [key[:, :, text.cot] for key in out.keys], [value[:, :, text.cot] for value in out.values]

    def samples(self, batch: Batch) -> Samples:
        return Samples(batch["example_id"], batch["cot_result"], self.seed, self.epoch)

    def own(self) -> dict[str, Tensor]:
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
            text, shown = read_text(self.model, batch), self.teacher(batch, self.wants)
            everything = Pairing(self.pairing.compressor, None)
            mask, facts = batch["cot_mask"], self.samples(batch)
            for one in self.bridge.compare(*self.cot_kv(text), shown, mask, facts, everything):
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
    def _weighted(self) -> bool:
        return self.explicit.attention_weighted and self.update >= self.explicit.attention_weighted_after

    def _make_codi_map(self, student: KVShape, teacher: KVShape) -> nn.Module | None:
        if not self._codi or student.hidden_size == teacher.hidden_size:
            return None
        if self.settings.direction == "none" or not self.settings.trainable:
            raise ConfigError(
                f"loss.alpha1_codi compares hidden states, but the student is {student.hidden_size} wide and the teacher "
                f"{teacher.hidden_size}, and no map between them is trained",
                "set loss.alpha1_codi=0, or a projector.direction",
            )
        return nn.Linear(student.hidden_size, teacher.hidden_size)


class Moments:
    """Mean and standard deviation of vectors that come in portions, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._square = torch.zeros(())

    def add(self, vectors: Tensor) -> None:
        """vectors [n, d]"""
        vectors = vectors.cpu().double()
        self.count += len(vectors)
        self._sum = self._sum + vectors.sum(0)
        self._square = self._square + vectors.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def std(self) -> Tensor:
        return (self._square / self.count - self.mean.square()).clamp(min=0).sqrt()


def _cka_layers(asked: str, count: int) -> list[int]:
    """middle, last, or numbers from 0."""
    if asked in ("middle", "last"):
        return [count // 2 if asked == "middle" else count - 1]
    words = [word.strip() for word in asked.split(",")]
    if not all(word.isdigit() and int(word) < count for word in words):
        raise ConfigError(
            f"explicit.cka_layers is {asked!r}; the student has layers 0 to {count - 1}",
            "write middle, last, or numbers with commas between them",
        )
    return [int(word) for word in words]
