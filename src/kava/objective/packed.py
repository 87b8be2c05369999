"""Teacher, pass 0 and the shared question in one forward pass; last round and answer in another: T + 1 in all.

    columns   question | chain of thought, cue, answer, eos | <bot>, slots [, <eot>, cue, answer, eos]
    branch        0    |               1                    |            2

A tree mask keeps the two branches apart and each counts its positions from the end of the question, so every number is
the one that separate passes give (tests hold this to 1e-9). The bracket is there when nothing is fed back (T = 0, M = 0):
then one pass is the whole loss.
"""

import torch
from torch import Tensor

from kava.backbone.masks import positions, tree_mask
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass, text_columns
from kava.objective.records import Batch, PassOutputs, StudentView, TeacherView
from kava.objective.unpacked import answer_part, finish_student, read_student, read_teacher


def packed(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[TeacherView | None, StudentView | None]:
    """The views of `unpacked`, in T + 1 passes."""
    ids, mask, branch = columns(model, batch, wants)
    length = batch["question_mask"].sum(1)
    place = torch.where(branch == 0, positions(mask), 0)
    for number in (1, 2):
        own = mask & (branch == number)
        place = torch.where(branch == number, positions(own, length), place)
    out = model.run(model.embed(ids), place, tree_mask(mask, branch), all_layers=wants.codi)

    question, cot, tail = text_columns(batch)
    bot = tail.stop if wants.teacher else question.stop
    teacher = student = None
    if wants.teacher:
        teacher = read_teacher(TextPass(out, ids, mask & (branch != 2), question, cot, tail), batch, wants)
    if wants.student and model.feeds_back:
        student = finish_student(model, batch, out, bot, wants)
    elif wants.student:
        latents = slice(bot + 1, bot + 1 + model.latent.num_tokens)
        student = read_student(out, batch, ids, mask & (branch != 1), latents, wants)
    return teacher, student


def columns(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], mask [B, T] and the branch [T] of each column of the packed pass."""
    parts = [(batch["question"], batch["question_mask"], 0)]
    if wants.teacher:
        parts += [(batch["cot"], batch["cot_mask"], 1), (batch["tail"], batch["tail_mask"], 1)]
    if wants.student:
        lead = model.slots(len(batch["question"]))
        parts.append((lead, torch.ones_like(lead, dtype=torch.bool), 2))
        if not model.feeds_back:
            ids, mask = (part[:, model.latent.num_tokens :] for part in answer_part(model, batch))
            parts.append((ids, mask, 2))
    branch = [torch.full((ids.shape[1],), number, device=ids.device) for ids, _, number in parts]
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1), torch.cat(branch)
