"""Before the first update of a mixture, from a few batches: heads that are alike, where adapters start, what the guard
holds teachers against, and what stands for a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kava.align import flatten_heads
from kava.backbone.model import Backbone
from kava.backbone.teacher_forced import TextPass, teacher_forced_pass
from kava.compress import importance
from kava.fuse import Similar, compute_teacher_prototype
from kava.objective.mixture import Layers, Mixture, present_in
from kava.objective.moments import Moments
from kava.objective.records import Batch
from kava.teachers.base import TeacherWants
from kava.teachers.teacher_set import TeacherSet

WANTS = TeacherWants(rotary=False)


@torch.no_grad()
def calibrate(mixture: Mixture, model: Backbone, teachers: TeacherSet, batches: Sequence[Batch], match: bool) -> None:
    """The guard's reference: how much the student's entries vary within a sample, mean over samples.

    With `match` each adapter begins with the mean and spread of the student's own entries, dimension by dimension: a start
    from elsewhere would drag the student there first.
    """
    if mixture.codes:
        return
    if mixture.settings.heads == "matched":
        _match_heads(mixture, model, teachers, batches)
    student = mixture.student
    shape = (2, student.num_layers, student.layer_size)
    within, counted = torch.zeros(shape, dtype=torch.float64), 0
    mine, *theirs = [[[Moments() for _ in range(shape[1])] for _ in "kv"] for _ in ("student", *mixture.names)]
    for batch in batches:
        keys, values = _cot_kv(teacher_forced_pass(model, batch))
        own, real = (mixture.unrotated(batch, keys), values), batch["cot_mask"]
        counted += int((real.sum(1) > 1).sum())
        for part in range(2):
            for layer, entries in enumerate(own[part]):
                flat = flatten_heads(entries)
                mine[part][layer].add(flat[real])
                for row, kept in zip(flat, real, strict=True):
                    if kept.sum() > 1:
                        within[part, layer] += row[kept].cpu().double().std(0)
        for number, shown in enumerate(teachers(batch, WANTS)):
            there = present_in(batch, number)
            for part, layers in enumerate(mixture.align(number, batch, shown)):
                for layer, entries in enumerate(layers):
                    theirs[number][part][layer].add(flatten_heads(entries)[there])
    if counted:
        mixture.reference.copy_(within / counted)
    if match:
        _match_spread(mixture, mine, theirs)


def _match_spread(mixture: Mixture, mine: list[list[Moments]], theirs: list[list[list[Moments]]]) -> None:
    shape = (mixture.student.num_heads, mixture.student.head_size)
    done: set[int] = set()
    for aligner, found in zip(mixture.aligners, theirs, strict=True):
        for part in range(2):
            for layer, (own, other) in enumerate(zip(mine[part], found[part], strict=True)):
                adapter = aligner.adapter("KV"[part], layer)
                if own.count > 1 and other.count > 1 and id(adapter) not in done:
                    gain = own.std / other.std.clamp(min=1e-12)
                    adapter.rescale(gain.reshape(shape), (own.mean - gain * other.mean).reshape(shape))
                done.add(id(adapter))  # a shared one has been matched by the first teacher that has it


def _match_heads(mixture: Mixture, model: Backbone, teachers: TeacherSet, batches: Iterable[Batch]) -> None:
    """Every student head is given the teacher heads that attend most as it does."""
    alike: dict[int, Tensor] = {}  # by adapters, which teachers may share
    for batch in batches:
        text = teacher_forced_pass(model, batch)
        keys, _ = _cot_kv(text)
        queries = [query[:, :, text.tail] for query in text.out.queries]
        mine = [
            importance(query, key, batch["tail_answer"], batch["cot_mask"], model.scale)
            for query, key in zip(queries, keys, strict=True)
        ]
        for number, shown in enumerate(teachers(batch, replace(WANTS, importance=True))):
            assert shown.importance is not None
            which = mixture.which[number]
            found = mixture.aligners[number].alike(mine, shown.importance, batch[f"t{number}.iou"], batch["cot_mask"])
            alike[which] = alike[which] + found if which in alike else found
    for which, similarity in alike.items():
        mixture.aligners[mixture.which.index(which)].match(similarity)


@torch.no_grad()
def find_prototypes(mixture: Mixture, teachers: TeacherSet, batches: Iterable[Batch]) -> None:
    """similarity: what each teacher made of many questions, in the student's shape, becomes what stands for it."""
    if not isinstance(mixture.fusion, Similar):
        return
    asked: list[list[Tensor]] = [[] for _ in mixture.names]
    for batch in batches:
        for number, one in enumerate(teachers(batch, replace(WANTS, question=mixture.pooling))):
            assert one.question is not None
            asked[number].append(mixture.aligners[number].question(one.question))
    settings = mixture.settings
    for number, found in enumerate(asked):
        points = torch.cat(found).transpose(0, 1)[:, :, None]  # [L, examples, 1, H*D]
        made = compute_teacher_prototype(points, settings.prototype, None, settings.centres)
        mixture.fusion.prototypes[number] = made if made.dim() == 3 else made[:, None]


def _cot_kv(text: TextPass) -> tuple[Layers, Layers]:
    out = text.out
    return [key[:, :, text.cot] for key in out.keys], [value[:, :, text.cot] for value in out.values]
