"""Teacher, pass 0 and the shared question in one forward pass; last round and answer in another: T + 1 in all.

    columns   question | chain of thought, cue, answer, eos | <bot>, slots [, <eot>, cue, answer, eos]
    branch        0    |               1                    |            2

A tree mask keeps the two branches apart and each counts its positions from the end of the question, so every number is
the one that separate passes give (tests hold this to 1e-9). The bracket is there when nothing is fed back (T = 0, M = 0):
then one pass is the whole loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kava.backbone.masks import positions, tree_mask
from kava.backbone.model import LatentModel
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
    merged = not model.feeds_back
    out = model.run(model.embed(ids), place, tree_mask(mask, branch), all_layers=wants.codi)

    question, cot, tail = (batch[name].shape[1] for name in ("question", "cot", "tail"))
    bot = question + (cot + tail if wants.teacher else 0)
    teacher = student = None
    if wants.teacher:
        own = mask & (branch != 2)
        teacher = read_teacher(out, batch, ids, own, question, slice(question, question + cot), wants)
    if wants.student and merged:
        own = mask & (branch != 1)
        student = read_student(out, batch, ids, own, bot + 1, model.latent.num_tokens, wants)
    elif wants.student:
        student = finish_student(model, batch, out, slice(0, question), bot, wants)
    return teacher, student


def columns(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], mask [B, T] and the branch [T] of each column of the packed pass."""
    parts = [(batch["question"], batch["question_mask"], 0)]
    if wants.teacher:
        parts += [(batch["cot"], batch["cot_mask"], 1), (batch["tail"], batch["tail_mask"], 1)]
    if wants.student:
        rows = len(batch["question"])
        lead = model.slots(rows)
        parts.append((lead, torch.ones_like(lead, dtype=torch.bool), 2))
        if not model.feeds_back:
            ids, mask = (part[:, model.latent.num_tokens :] for part in answer_part(model, batch))
            parts.append((ids, mask, 2))
    branch = [torch.full((ids.shape[1],), number, device=ids.device) for ids, _, number in parts]
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1), torch.cat(branch)
