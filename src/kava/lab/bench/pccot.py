"""The order of passes of PCCoT's official code, with its padding: a reference for speed, not a way to train.

Teacher over rows padded to the longest, with its attentions kept; pass 0 over padded questions, which reads them again;
T rounds of one pass each; the answer: T + 3 passes. Logits are made at every position, padding too.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kava.backbone.kv import Pass, join
from kava.backbone.masks import causal_mask, positions
from kava.backbone.teacher_forced import cue_states, teacher_forced_pass
from kava.compress.importance import masked_softmax
from kava.lab.bench.reference import eager_attention
from kava.losses import Head
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step, StudentView, Targets, TeacherView, Views
from kava.objective.student import LatentSlots
from kava.objective.targets import OwnTeacher, Target
from kava.objective.unpacked import answer_part, read_teacher
from kava.teachers.base import TeacherWants


class PccotView(LatentSlots):
    """Student and teacher in that order; `queries` of the teacher hold its attention logits [B, H*R, A, N] instead."""

    def __call__(self, batch: Batch) -> tuple[StudentView, TeacherView]:
        return self._student(batch), self._teacher(batch)

    def _teacher(self, batch: Batch) -> TeacherView:
        with eager_attention(self.model) as logits:
            text = teacher_forced_pass(self.model, batch, all_layers=True)
        teacher, rows = read_teacher(text, batch, self.outputs), text.rows
        answer, cot = rows.columns["tail"][:, None, :, None], rows.columns["cot"][:, None, None, :]
        heads, width = logits[0].shape[1], logits[0].shape[3]
        of_answer = [layer.gather(2, answer.expand(-1, heads, -1, width)) for layer in logits]
        cot_logits = [layer.gather(3, cot.expand(-1, heads, layer.shape[2], -1)) for layer in of_answer]
        targets = every_position(text.out.hidden, rows.ids, rows.after(batch["question_mask"].sum(1)))
        return replace(teacher, targets=targets, queries=cot_logits)

    def _student(self, batch: Batch) -> StudentView:
        model, slots = self.model, self.model.slots(len(batch["question"]))
        ids = torch.cat([batch["question"], slots], dim=1)
        real = torch.cat([batch["question_mask"], torch.ones_like(slots, dtype=torch.bool)], dim=1)
        first = model.run(model.embed(ids), positions(real), causal_mask(real))
        bot = batch["question"].shape[1]
        prefix, known = first.kv(slice(0, bot + 1)), real[:, : bot + 1]

        def run(embeds: Tensor) -> Pass:
            own = torch.ones_like(embeds[..., 0], dtype=torch.bool)
            return model.run(embeds, positions(own, known.sum(1)), causal_mask(own, known), prefix)

        latents = model.think(first.hidden[:, bot:], lambda embeds: run(embeds).hidden)
        last = run(latents)
        whole = torch.cat([known, torch.ones_like(latents[..., 0], dtype=torch.bool)], dim=1)
        ids, mask = (part[:, latents.shape[1] :] for part in answer_part(model, batch))
        place, behind = positions(mask, whole.sum(1)), join(prefix, last.kv(slice(None)))
        out = model.run(model.embed(ids), place, causal_mask(mask, whole), behind, all_layers=True)
        wanted = mask.clone()
        wanted[:, 0] = False  # <eot>
        cue = cue_states(out, 1 + batch["cue_last"])
        return StudentView(every_position(out.hidden, ids, wanted), last.keys, last.values, cue)


def every_position(hidden: Tensor, ids: Tensor, wanted: Tensor) -> Targets:
    """All positions with the next token as their label, or -100 where that is not `wanted` [B, T]."""
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:].masked_fill(~wanted[:, 1:], -100)
    return Targets(hidden.flatten(0, 1), labels.flatten())


class PccotTeacher(OwnTeacher):
    """The student's own teacher mode, with importance read off the attention logits of `PccotView`."""

    @torch.no_grad()
    def __call__(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        student, own = views
        assert own is not None
        weight = batch["tail_answer"][:, None, :, None].float()
        importance = []
        for logits, key in zip(own.queries, own.keys, strict=True):
            grouped = logits.unflatten(1, (key.shape[1], -1)).amax(2)
            attention = masked_softmax(grouped.float(), batch["cot_mask"][:, None, None])
            importance.append((attention * weight).sum(2) / weight.sum(2))
        target = super().__call__(batch, (student, own), replace(wants, importance=False), step)
        return replace(target, kv=replace(target.kv, importance=importance))


class PccotObjective(Objective):
    """The same loss; the logits of all positions are made at once."""

    def _ce(self, targets: Targets, head: Head) -> Tensor:
        return F.cross_entropy(self.model.head(targets.hidden).float(), targets.tokens, reduction="sum")
