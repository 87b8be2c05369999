"""The passes one after another, as the method is told: the readable form, and the oracle of the packed one."""

import torch
from torch import Tensor

from kava.backbone.kv import Pass, join
from kava.backbone.masks import causal_mask, positions, previous
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass, cue_states, teacher_forced_pass
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
    out, cot, tail = text.out, text.cot, text.tail
    return TeacherView(
        targets=targets(out.hidden, text.ids, text.mask, slice(cot.start, tail.stop)),
        queries=[q[:, :, tail] for q in out.queries] if wants.kv else [],
        keys=[k[:, :, cot] for k in out.keys] if wants.kv else [],
        values=[v[:, :, cot] for v in out.values] if wants.kv else [],
        cue=cue_states(out, tail.start + batch["cue_last"]) if wants.codi else None,
    )


def run_student(model: LatentModel, batch: Batch, wants: PassOutputs) -> StudentView:
    """Pass 0 over [Q, <bot>, slots], then the rounds and the answer."""
    question, mask = batch["question"], batch["question_mask"]
    slots = model.slots(len(question))
    ids = torch.cat([question, slots], dim=1)
    full = torch.cat([mask, torch.ones_like(slots, dtype=torch.bool)], dim=1)
    out = model.run(model.embed(ids), positions(full), causal_mask(full))
    return finish_student(model, batch, out, question.shape[1], wants)


def finish_student(model: LatentModel, batch: Batch, first: Pass, bot: int, wants: PassOutputs) -> StudentView:
    """The rounds, then one pass over [latents, <eot>, cue, A, eos], on the prefix [Q, <bot>] of `first`."""
    prefix = join(first.kv(slice(0, batch["question"].shape[1])), first.kv(slice(bot, bot + 1)))
    mask = batch["question_mask"]
    known = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    offset = known.sum(1)
    num_latents = model.latent.num_tokens

    def run(embeds: Tensor) -> Tensor:
        real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return model.run(embeds, positions(real, offset), causal_mask(real, known), prefix).hidden

    ids, real = answer_part(model, batch)
    hidden = first.hidden[:, bot : bot + 1 + num_latents]
    latents = model.think(hidden, run) if model.feeds_back else model.embed(ids[:, :num_latents])
    embeds = torch.cat([latents, model.embed(ids[:, num_latents:])], dim=1)
    out = model.run(embeds, positions(real, offset), causal_mask(real, known), prefix, all_layers=wants.codi)
    return read_student(out, batch, ids, real, slice(0, num_latents), wants, latents)


def answer_part(model: LatentModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """ids and mask of [latents, <eot>, cue, A, eos]; the latents' ids only hold their place."""
    slots = model.slots(len(batch["tail"]), bot=False)
    lead = torch.cat([slots, torch.full_like(batch["tail"][:, :1], model.special.eot)], dim=1)
    mask = torch.cat([torch.ones_like(lead, dtype=torch.bool), batch["tail_mask"]], dim=1)
    return torch.cat([lead, batch["tail"]], dim=1), mask


def read_student(
    out: Pass, batch: Batch, ids: Tensor, mask: Tensor, place: slice, wants: PassOutputs, latents: Tensor | None = None
) -> StudentView:
    """The student's view of a pass that holds the latents in the columns `place`, and after them [<eot>, tail]."""
    tail = place.stop + 1
    return StudentView(
        targets=targets(out.hidden, ids, mask, slice(tail, tail + batch["tail"].shape[1])),
        keys=[k[:, :, place] for k in out.keys] if wants.kv else [],
        values=[v[:, :, place] for v in out.values] if wants.kv else [],
        cue=cue_states(out, tail + batch["cue_last"]) if wants.codi else None,
        latents=latents,
        states=out.hidden[:, place],
    )


def targets(hidden: Tensor, ids: Tensor, mask: Tensor, columns: slice) -> Targets:
    """Each real token in `columns` with the hidden state of the real token before it."""
    wanted = torch.zeros_like(mask)
    wanted[:, columns] = mask[:, columns]
    row, _ = wanted.nonzero(as_tuple=True)
    return Targets(hidden[row, previous(mask)[wanted]], ids[wanted])
