"""Teacher, pass 0 and the shared question in one forward pass; last round and answer in another: T + 1 in all.

    columns   question, chain of thought, cue, answer, eos, padding | <bot>, slots [, <eot>, cue, answer, eos]
    attends   causally                                              | to the question, and causally to each other

Each branch counts its positions from the end of the question, so every number is the one that separate passes give
(tests hold this to 1e-9). The bracket is there when nothing is fed back (T = 0, M = 0): then one pass is the whole loss.
"""

import torch
from torch import Tensor

from kava.backbone.branches import Attends, continuation, text
from kava.backbone.joined import PARTS, Rows, join_rows
from kava.backbone.kv import join
from kava.backbone.masks import positions, tree_mask
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import TextPass
from kava.objective.records import Batch, PassOutputs, StudentView, TeacherView
from kava.objective.unpacked import answer_part, finish_student, read_student, read_teacher, slots_part


def packed(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[TeacherView | None, StudentView | None]:
    """The views of `unpacked`, in T + 1 passes."""
    rows = join_rows(batch, PARTS if wants.teacher else PARTS[:1])
    length = batch["question_mask"].sum(1)
    question = torch.arange(min(rows.length, batch["question"].shape[1]), device=length.device) < length[:, None]
    own_ids, own = branch_columns(model, batch, wants)
    place = torch.cat([positions(rows.mask), positions(own, length)], dim=1)
    attends: Attends = (text(rows.length),)
    if wants.student:
        attends = (*attends, continuation(rows.length, question, own))
    if model.dense_attention:
        attends = tree_mask(torch.cat([rows.mask, own], dim=1), branch_numbers(rows, length, own))
    embeds = model.embed(torch.cat([rows.ids, own_ids], dim=1))
    out = model.run(embeds, place, attends, all_layers=wants.codi)

    teacher = student = None
    if wants.teacher:
        teacher = read_teacher(TextPass(out, rows), batch, wants)
    branch = out.part(slice(rows.length, None))
    if wants.student and model.feeds_back:
        prefix = join(out.kv(slice(0, question.shape[1])), branch.kv(slice(0, 1)))
        student = finish_student(model, batch, branch.hidden, prefix, question, wants)
    elif wants.student:
        student = read_student(branch, batch, own_ids, own, slice(1, 1 + model.latent.num_tokens), wants)
    return teacher, student


def branch_columns(model: LatentModel, batch: Batch, wants: PassOutputs) -> tuple[Tensor, Tensor]:
    """ids and mask of the student's branch; none without a student."""
    ids, mask = slots_part(model, batch)
    if not wants.student:
        return ids[:, :0], mask[:, :0]
    if model.feeds_back:
        return ids, mask
    answer = (part[:, model.latent.num_tokens :] for part in answer_part(model, batch))
    ids, mask = (torch.cat(pair, dim=1) for pair in zip((ids, mask), answer, strict=True))
    return ids, mask


def branch_numbers(rows: Rows, length: Tensor, own: Tensor) -> Tensor:
    """[B, T] the branch of each column: 0 the question, 1 the text after it, 2 the student's."""
    text_columns = (torch.arange(rows.length, device=length.device) >= length[:, None]).long()
    return torch.cat([text_columns, torch.full_like(own, 2, dtype=torch.long)], dim=1)
