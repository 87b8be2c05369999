"""The latent line on one screen: L = CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV  (docs/paper-map.md)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kava.backbone.kv import unrotate
from kava.backbone.masks import positions
from kava.backbone.model import LatentModel
from kava.compress import Compressed, Compressor, Samples, importance, make_compressor
from kava.config import LossConfig, Recipe
from kava.errors import ConfigError
from kava.latents import residual
from kava.losses import Term, codi_loss, cross_entropy, kv_loss
from kava.objective.foreign import ForeignTeachers
from kava.objective.mixture import Blend
from kava.objective.packed import packed
from kava.objective.records import Batch, Result, StudentView, Targets, Teacher, Wants
from kava.objective.unpacked import unpacked
from kava.teachers.teacher_set import TeacherSet


class LatentObjective(nn.Module):
    """One forward is one micro-batch: DDP sees one forward per backward, and every pass inside it."""

    def __init__(
        self,
        model: LatentModel,
        loss: LossConfig,
        compressor: Compressor,
        packed: bool = True,
        rotary: str = "after",
        seed: int = 0,
        foreign: ForeignTeachers | None = None,
    ):
        super().__init__()
        self.model = model
        self.loss = loss
        self.compressor = compressor
        self.packed = packed
        self.rotary = rotary
        self.seed = seed
        self.foreign = foreign
        self.epoch = self.update = 0  # the trainer sets these four
        self.progress, self.watch = 0.0, True
        kv, codi = loss.alpha2_kv > 0, loss.alpha1_codi > 0
        self.wants = Wants(
            teacher=loss.teacher_ce > 0 or codi or (kv and foreign is None),
            student=loss.student_ce > 0 or kv or codi,
            kv=kv,
            codi=codi,
        )
        if not self.wants.student:  # torch's own word: DDP would wait for a gradient that never comes
            names = dict(self.named_parameters())
            self._ddp_params_and_buffers_to_ignore = [name for name in names if name.startswith("model.project.")]

    @classmethod
    def from_recipe(cls, model: LatentModel, recipe: Recipe, teachers: TeacherSet | None = None) -> LatentObjective:
        """The objective a recipe describes; with `teachers` the latents learn from these instead of the model itself."""
        rkv = recipe.rkv
        if rkv.rotary == "before" and not model.family.rotary:
            raise ConfigError(
                f"rkv.rotary is before, but {model.family.name} has no rotary embedding", "leave rkv.rotary out"
            )
        compressor = make_compressor(rkv.method, rkv.shuffle, lambda_=rkv.lambda_, side=rkv.crop_keep)
        foreign = (
            ForeignTeachers(recipe, model, teachers, compressor.needs_importance) if teachers is not None else None
        )
        return cls(model, recipe.loss, compressor, recipe.training.packed, rkv.rotary, recipe.system.seed, foreign)

    def forward(self, batch: Batch) -> Result:
        run = packed if self.packed else unpacked
        teacher, student = run(self.model, batch, self.wants)
        counts = self.counts(batch)
        terms = []
        if student is not None:
            terms.append(self._term("ce_student", self._ce(student.targets), counts))
        if teacher is not None:
            terms.append(self._term("ce_teacher", self._ce(teacher.targets), counts))
        if teacher is not None and student is not None and self.wants.codi:
            terms.append(self._term("codi", self._codi(student, teacher), counts))
        if student is not None and self.wants.kv:
            blend = self.foreign.blend(batch, self.epoch) if self.foreign is not None else None
            terms.append(self._term("kv", self._kv(batch, student, teacher, blend), counts))
            if self.foreign is not None and blend is not None:
                terms += self.foreign.terms(blend, batch, counts, self.watch)
        health = self._health(student)
        if self.wants.kv and self.watch:
            slots = len(batch["question"]) * self.model.latent.num_tokens
            per_slot = self.model.num_kv_heads * self.model.head_size * self.model.num_layers
            health["kept_share"] = torch.tensor(counts["kv"] / (slots * per_slot))
        return Result(terms, health)

    @property
    def weights(self) -> dict[str, float]:
        """Each term's weight; CE_teacher trains the teacher mode of the same weights  [known]"""
        loss = self.loss
        return {
            "ce_student": loss.student_ce,
            "ce_teacher": loss.teacher_ce,
            "codi": loss.alpha1_codi,
            "kv": loss.alpha2_kv,
        }

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term's sum is divided by, from the batch alone: N_A, N_A + N_C, and the numbers compared."""
        model = self.model
        answer, cot = float(batch["tail_mask"].sum()), float(batch["cot_mask"].sum())
        counts = {"ce_student": answer, "ce_teacher": answer + cot}
        counts["codi"] = float(len(batch["question"]) * model.num_layers * model.config.hidden_size)
        if self.wants.kv:
            kept = self.compressor.count(self._compared(batch), model.latent.num_tokens, self._samples(batch))
            counts["kv"] = float(kept.sum()) * model.num_kv_heads * model.head_size * model.num_layers
            counts |= self.foreign.counts(batch) if self.foreign is not None else {}
        return counts

    def _compared(self, batch: Batch) -> Tensor:
        """[B, N] the CoT columns that have a target."""
        return batch["cot_mask"] if self.foreign is None else self.foreign.mixture.columns(batch)

    def aux_state(self) -> dict[str, Tensor]:
        """What is trained or measured beside the student: nothing, or what stands between it and foreign teachers."""
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if not name.startswith("model.")}

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def _term(self, name: str, total: Tensor, counts: dict[str, float]) -> Term:
        return Term(name, total, counts[name], self.weights[name])

    def _ce(self, targets: Targets) -> Tensor:
        return cross_entropy(targets.hidden, targets.tokens, self.model.head)

    def _codi(self, student: StudentView, teacher: Teacher) -> Tensor:
        assert student.cue is not None
        assert teacher.cue is not None
        loss = self.loss
        return codi_loss(student.cue, teacher.cue, loss.codi_loss_type, loss.layerwise_std, loss.std_scope)

    def _kv(self, batch: Batch, student: StudentView, teacher: Teacher | None, blend: Blend | None = None) -> Tensor:
        """1/2 (sum_K + sum_V) over the layers; teacher entries chosen per sample, layer and head.

        No gradient reaches them, unless they are foreign and come through adapters that are trained.
        """
        loss, total = self.loss, student.targets.hidden.new_zeros((), dtype=torch.float32)
        found = self.kept_of(batch, blend) if blend is not None else self.kept(batch, teacher)  # type: ignore[arg-type]
        detach = self.foreign is None or not self.foreign.mixture.target_is_trained
        for kept, latent_key, latent_value in zip(found, student.keys, student.values, strict=True):
            plain = self._unrotated(latent_key, batch, "latents")
            for mine, target in ((plain, kept.keys), (latent_value, kept.values)):
                kind, std = loss.kv_loss_type, loss.layerwise_std
                part = kv_loss(mine, target, kept.kept, kind, std, loss.std_scope, detach=detach)
                total = total + part / 2
        return total

    def kept(self, batch: Batch, teacher: Teacher) -> Iterator[Compressed]:
        """Layer by layer, what the compressor keeps of the teacher's chain of thought; no gradient."""
        for query, key, value in zip(teacher.queries, teacher.keys, teacher.values, strict=True):
            with torch.no_grad():
                weight = None
                if self.compressor.needs_importance:
                    weight = importance(query, key, batch["tail_answer"], batch["cot_mask"], self.model.scale)
                found = self._compressed(batch, self._unrotated(key, batch, "teacher"), value, weight)
            yield found

    def kept_of(self, batch: Batch, blend: Blend) -> Iterator[Compressed]:
        """The same of a mixture; gradient reaches adapters and router."""
        for layer, (key, value) in enumerate(zip(blend.kv.keys, blend.kv.values, strict=True)):
            weight = None if blend.kv.importance is None else blend.kv.importance[layer]
            yield self._compressed(batch, key, value, weight)

    def _compressed(self, batch: Batch, key: Tensor, value: Tensor, weight: Tensor | None) -> Compressed:
        keep, samples = self.model.latent.num_tokens, self._samples(batch)
        return self.compressor(key, value, self._compared(batch), weight, keep, samples=samples)

    def _unrotated(self, keys: Tensor, batch: Batch, who: str) -> Tensor:
        """Keys as cached, or before the rotary embedding (`rkv.rotary: before`)  [open: after]"""
        if self.rotary == "after" or not self.model.family.rotary:
            return keys
        length = batch["question_mask"].sum(1)
        if who == "teacher":
            place = positions(batch["cot_mask"], length)
        else:
            place = length[:, None] + 1 + torch.arange(keys.shape[2], device=keys.device)
        return unrotate(keys, self.model.decoder, place)

    def _samples(self, batch: Batch) -> Samples:
        return Samples(batch["example_id"], batch["cot_result"], self.seed, self.epoch)

    @torch.no_grad()
    def _health(self, student: StudentView | None) -> dict[str, Tensor]:
        """Norm of the latents against that of token embeddings, their mean cosine, what one more round would change."""
        if not self.watch or student is None or student.latents is None or student.states is None:
            return {}
        latents = student.latents.float()
        count = latents.shape[1]
        if count == 0:
            return {}
        usual = self.model.embed(torch.arange(0, self.model.config.vocab_size, 17, device=latents.device))
        health = {"latent_norm": latents.norm(dim=-1).mean() / usual.float().norm(dim=-1).mean()}
        if count > 1:
            unit = torch.nn.functional.normalize(latents, dim=-1)
            total = unit.sum(1).square().sum(-1)  # sum over all pairs of cosines, with the diagonal
            health["latent_cosine"] = ((total - count) / (count * (count - 1))).mean()
        if self.model.feeds_back:
            health["jacobi_residual"] = residual(latents[:, 1:], self.model.project(student.states[:, :-1]).float())
        return health
