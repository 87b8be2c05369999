"""The passes one after another, as the method is told: the readable form, and the oracle of the packed one."""

import torch
from torch import Tensor

from kava.backbone.attention import KV
from kava.backbone.joined import join_rows
from kava.backbone.kv import Pass
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass, cue_states, teacher_forced_pass
from kava.objective.plan import TAIL_PLACES, TEXT_PLACES, places
from kava.objective.records import Batch, PassOutputs, StudentView, Targets, TeacherView


def unpacked(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[TeacherView | None, StudentView | None]:
    """T + 2 passes: the teacher, pass 0, T - 1 rounds, and the last round together with the answer."""
    teacher = run_teacher(model, batch, wants) if wants.teacher else None
    student = run_student(model, batch, wants) if wants.student else None
    return teacher, student


def run_teacher(model: LatentModel, batch: Batch, wants: PassOutputs) -> TeacherView:
    """One pass over [Q, C, cue, A, eos]."""
    return read_teacher(teacher_forced_pass(model, batch, all_layers=wants.codi), batch, wants)


def read_teacher(text: TextPass, batch: Batch, wants: PassOutputs) -> TeacherView:
    """The teacher's view of a pass that begins with question, chain of thought and tail; all after the question are targets."""
    return TeacherView(
        targets=text_targets(text, batch),
        queries=text.queries("tail") if wants.kv else [],
        keys=text.keys("cot") if wants.kv else [],
        values=text.values("cot") if wants.kv else [],
        cue=text.cue(batch) if wants.codi else None,
    )


def run_student(model: LatentModel, batch: Batch, wants: PassOutputs) -> StudentView:
    """Pass 0 over [Q, <bot>, slots], then the rounds and the answer."""
    question, (slots, real) = join_rows(batch, ("question",)), slots_part(model, batch)
    bot = question.length
    ids, mask = torch.cat([question.ids, slots], dim=1), torch.cat([question.mask, real], dim=1)
    out = model.run(model.embed(ids), positions(mask), causal_mask(mask))
    return finish_student(model, batch, out.hidden[:, bot:], out.kv(slice(0, bot + 1)), question.mask, wants)


def finish_student(
    model: LatentModel, batch: Batch, first: Tensor, prefix: KV, question: Tensor, wants: PassOutputs
) -> StudentView:
    """The rounds, then one pass over [latents, <eot>, cue, A, eos], on the prefix [Q, <bot>]; question [B, Q] its mask.

    first [B, 1 + M, E]: hidden states at <bot> and the slots after pass 0.
    """
    known = torch.cat([question, torch.ones_like(question[:, :1])], dim=1)
    offset = known.sum(1)
    num_latents = model.latent.num_tokens

    def run(embeds: Tensor) -> Tensor:
        real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return model.run(embeds, positions(real, offset), causal_mask(real, known), prefix).hidden

    ids, real = answer_part(model, batch)
    latents = model.think(first, run) if model.feeds_back else model.embed(ids[:, :num_latents])
    embeds = torch.cat([latents, model.embed(ids[:, num_latents:])], dim=1)
    out = model.run(embeds, positions(real, offset), causal_mask(real, known), prefix, all_layers=wants.codi)
    return read_student(out, batch, ids, real, slice(0, num_latents), wants, latents)


def slots_part(model: LatentModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """ids and mask of [<bot>, slots]."""
    ids = model.slots(len(batch["question"]))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def answer_part(model: LatentModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """ids and mask of [latents, <eot>, cue, A, eos]; the latents' ids only hold their place."""
    tail, slots = join_rows(batch, ("tail",)), model.slots(len(batch["tail"]), bot=False)
    lead = torch.cat([slots, torch.full_like(tail.ids[:, :1], model.special.eot)], dim=1)
    mask = torch.cat([torch.ones_like(lead, dtype=torch.bool), tail.mask], dim=1)
    return torch.cat([lead, tail.ids], dim=1), mask


def read_student(
    out: Pass, batch: Batch, ids: Tensor, mask: Tensor, place: slice, wants: PassOutputs, latents: Tensor | None = None
) -> StudentView:
    """The student's view of a pass that holds the latents in the columns `place`, and after them [<eot>, tail]."""
    tail, wanted = place.stop + 1, mask.clone()
    wanted[:, :tail] = False
    cue = batch["cue_last"] - batch["tail_mask"].int().argmax(1)  # where it is once padding is at the end
    return StudentView(
        targets=targets(out.hidden, ids, wanted, batch.get(TAIL_PLACES), tail),
        keys=[k[:, :, place] for k in out.keys] if wants.kv else [],
        values=[v[:, :, place] for v in out.values] if wants.kv else [],
        cue=cue_states(out, tail + cue) if wants.codi else None,
        latents=latents,
        states=out.hidden[:, place],
    )


def text_targets(text: TextPass, batch: Batch) -> Targets:
    """Everything after the question."""
    rows = text.rows
    return targets(text.out.hidden, rows.ids, rows.after(batch["question_mask"].sum(1)), batch.get(TEXT_PLACES))


def targets(hidden: Tensor, ids: Tensor, wanted: Tensor, known: Tensor | None = None, start: int = 0) -> Targets:
    """Each token in the columns `wanted` [B, T] with the hidden state of the token before it. `known`: the places of these
    tokens, counted from column `start`, of a planned batch."""
    row, column = places(wanted) if known is None else known
    column = column if known is None else column + start
    return Targets(hidden[row, column - 1], ids[row, column])
