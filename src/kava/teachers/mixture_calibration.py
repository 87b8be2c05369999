"""Before the first update of a mixture, from a few batches: matched heads, where adapters start, the guard's reference,
and the prototypes of teachers."""

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
from kava.teachers.base import Batch, TeacherWants
from kava.teachers.mixture import Layers, Mixture, present_in
from kava.teachers.moments import Moments, WithinSample
from kava.teachers.teacher_set import TeacherSet

WANTS = TeacherWants(rotary=False)
LayerMoments = list[list[Moments]]  # keys and values, per layer


@torch.no_grad()
def calibrate_mixture(
    mixture: Mixture, model: Backbone, teachers: TeacherSet, batches: Sequence[Batch], match: bool
) -> None:
    """Sets the guard's reference: how much the student's entries vary within a sample, mean over samples.

    With `match` each adapter starts with the mean and spread of the student's own entries, dimension by dimension: an
    adapter that starts elsewhere would first move the student there.
    """
    if mixture.codes:
        return
    if mixture.settings.heads == "matched":
        _match_heads(mixture, model, teachers, batches)
    layers = range(mixture.student.num_layers)
    own_moments, *teacher_moments = [
        [[Moments() for _ in layers] for _ in range(2)] for _ in ("student", *mixture.names)
    ]
    within = [[WithinSample() for _ in layers] for _ in range(2)]
    for batch in batches:
        keys, values = _cot_kv(teacher_forced_pass(model, batch))
        real = batch["cot_mask"]
        for part, entries in enumerate((mixture.unrotated(batch, keys), values)):
            for layer, flat in enumerate(map(flatten_heads, entries)):
                own_moments[part][layer].add(flat[real])
                within[part][layer].add(flat, real)
        for number, kv in enumerate(teachers(batch, WANTS)):
            present = present_in(batch, number)
            for part, entries in enumerate(mixture.align(number, batch, kv)):
                for layer, flat in enumerate(map(flatten_heads, entries)):
                    teacher_moments[number][part][layer].add(flat[present])
    if within[0][0].count:
        mixture.reference.copy_(torch.stack([torch.stack([each.mean for each in part]) for part in within]))
    if match:
        _match_spread(mixture, own_moments, teacher_moments)


def _match_spread(mixture: Mixture, own_moments: LayerMoments, teacher_moments: list[LayerMoments]) -> None:
    shape = (mixture.student.num_heads, mixture.student.head_size)
    done: set[int] = set()
    for aligner, moments in zip(mixture.aligners, teacher_moments, strict=True):
        for part, kind in enumerate("kv"):
            for layer, (own, other) in enumerate(zip(own_moments[part], moments[part], strict=True)):
                adapter = aligner.adapter(kind, layer)
                if own.count > 1 and other.count > 1 and id(adapter) not in done:
                    adapter.rescale(*(numbers.reshape(shape) for numbers in other.onto(own)))
                done.add(id(adapter))  # a shared one has been matched by the first teacher that has it


def _match_heads(mixture: Mixture, model: Backbone, teachers: TeacherSet, batches: Iterable[Batch]) -> None:
    """Gives every student head the teacher heads whose attention is most like its own."""
    similarity: dict[int, Tensor] = {}  # by adapters, which teachers may share
    for batch in batches:
        text = teacher_forced_pass(model, batch)
        keys, _ = _cot_kv(text)
        queries = [query[:, :, text.tail] for query in text.out.queries]
        own = [
            importance(query, key, batch["tail_answer"], batch["cot_mask"], model.scale)
            for query, key in zip(queries, keys, strict=True)
        ]
        for number, kv in enumerate(teachers(batch, replace(WANTS, importance=True))):
            assert kv.importance is not None
            which, iou = mixture.which[number], batch[f"t{number}.iou"]
            of_batch = mixture.aligners[number].alike(own, kv.importance, iou, batch["cot_mask"])
            similarity[which] = similarity[which] + of_batch if which in similarity else of_batch
    for which, of_heads in similarity.items():
        mixture.aligners[mixture.which.index(which)].match(of_heads)


@torch.no_grad()
def find_prototypes(mixture: Mixture, teachers: TeacherSet, batches: Iterable[Batch]) -> None:
    """Fusion by similarity: makes each teacher's prototypes from its values of many questions, in the student's shape."""
    if not isinstance(mixture.fusion, Similar):
        return
    questions: list[list[Tensor]] = [[] for _ in mixture.names]
    for batch in batches:
        for number, kv in enumerate(teachers(batch, replace(WANTS, question=mixture.pooling))):
            assert kv.question is not None
            questions[number].append(mixture.aligners[number].question(kv.question))
    settings = mixture.settings
    for number, values in enumerate(questions):
        points = torch.cat(values).transpose(0, 1)[:, :, None]  # [L, examples, 1, H*D]
        prototypes = compute_teacher_prototype(points, settings.prototype, None, settings.centres)
        mixture.fusion.prototypes[number] = prototypes if prototypes.dim() == 3 else prototypes[:, None]


def _cot_kv(text: TextPass) -> tuple[Layers, Layers]:
    out = text.out
    return [key[:, :, text.cot] for key in out.keys], [value[:, :, text.cot] for value in out.values]
