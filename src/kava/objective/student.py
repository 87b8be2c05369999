"""What of the student is compared and trained: its latent slots, or the columns of the text it reads."""

from dataclasses import replace

import torch
from torch import Tensor

from kava.backbone.kv import unrotate
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.config import LossConfig
from kava.latents import residual
from kava.objective.packed import packed
from kava.objective.records import Batch, Figure, PassOutputs, Step, StudentView, Views
from kava.objective.unpacked import text_targets, unpacked


class View:
    """batch -> what the passes show of the student, and the teacher mode of the same weights where it was run."""

    model: LatentModel

    def __call__(self, batch: Batch) -> Views:
        raise NotImplementedError

    def at(self, batch: Batch, step: Step) -> Batch:
        """The batch as it is read at this moment of the run."""
        return batch

    def counts(self, batch: Batch) -> dict[str, float]:
        """How many targets each cross-entropy has, from the batch alone."""
        raise NotImplementedError

    def health(self, student: StudentView, kept: Tensor | None) -> dict[str, Figure]:
        """Figures for the log; kept [B]: entries that the KV term compares in each head, None without one."""
        return {}


class LatentSlots(View):
    """M latents after T Jacobi rounds, and the answer after them; teacher mode shares the passes where it is needed."""

    def __init__(
        self, model: LatentModel, loss: LossConfig, packed: bool = True, rotary: str = "after", own_teacher: bool = True
    ):
        self.model, self.packed = model, packed
        self.rotary_before = rotary == "before" and model.family.rotary
        kv, codi = loss.alpha2_kv > 0, loss.alpha1_codi > 0
        self.outputs = PassOutputs(
            teacher=loss.teacher_ce > 0 or codi or (kv and own_teacher),
            student=loss.student_ce > 0 or kv or codi or loss.step_decoder > 0,
            kv=kv,
            codi=codi,
        )

    def __call__(self, batch: Batch) -> Views:
        run = packed if self.packed else unpacked
        teacher, student = run(self.model, batch, self.outputs)
        if student is not None and student.keys and self.rotary_before:
            place = batch["question_mask"].sum(1)[:, None] + 1
            place = place + torch.arange(student.keys[0].shape[2], device=place.device)
            student = replace(student, keys=[unrotate(key, self.model.decoder, place) for key in student.keys])
        return student, teacher

    def counts(self, batch: Batch) -> dict[str, float]:
        answer, cot = float(batch["tail_mask"].sum()), float(batch["cot_mask"].sum())
        return {"ce_student": answer, "ce_teacher": answer + cot}

    @torch.no_grad()
    def health(self, student: StudentView, kept: Tensor | None) -> dict[str, Figure]:
        """Norm of the latents against that of token embeddings, their mean cosine, what one more round would change, and
        the share of the slots that have a target."""
        model, health = self.model, {}
        if kept is not None:
            health["kept_share"] = Figure(kept.float().sum(), len(kept) * model.latent.num_tokens)
        if student.latents is None or student.states is None or student.latents.shape[1] == 0:
            return health
        latents = student.latents.float()
        rows, count = latents.shape[:2]
        tokens = model.embed(torch.arange(0, model.config.vocab_size, 17, device=latents.device))
        relative = latents.norm(dim=-1) / tokens.float().norm(dim=-1).mean()
        health["latent_norm"] = Figure(relative.sum(), rows * count)
        if count > 1:
            unit = torch.nn.functional.normalize(latents, dim=-1)
            total = unit.sum(1).square().sum(-1)  # sum over all pairs of cosines, with the diagonal
            health["latent_cosine"] = Figure(((total - count) / (count * (count - 1))).sum(), rows)
        if model.feeds_back:
            after = model.as_input(student.states[:, :-1]).float()
            health["jacobi_residual"] = Figure(*residual(latents[:, 1:], after), power=0.5)
        return health


class TextColumns(View):
    """The student reads question, chain of thought and answer; its keys and values at the CoT columns are compared."""

    def __init__(self, model: LatentModel, cue: bool = False):
        self.model, self.cue = model, cue

    def __call__(self, batch: Batch) -> tuple[StudentView, None]:
        text = teacher_forced_pass(self.model, batch, all_layers=self.cue)
        view = StudentView(
            targets=text_targets(text, batch),
            keys=text.keys("cot"),
            values=text.values("cot"),
            cue=text.cue(batch) if self.cue else None,
            text=text,
        )
        return view, None

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"ce_student": float(batch["cot_mask"].sum() + batch["tail_mask"].sum())}
