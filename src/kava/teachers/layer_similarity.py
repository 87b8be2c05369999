"""How alike the layers of two models are, on the same texts: what a layer map by CKA is made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kava.align import flatten_heads
from kava.align.length import apply_soft_alignment
from kava.align.tokens import matched, normalised
from kava.errors import DataError
from kava.losses.cka import _gram
from kava.shapes import at_least_float32
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.teacher_set import TeacherSet

FEWEST = 4  # tokens that the unbiased form needs


@torch.no_grad()
def layer_similarity(both: TeacherSet, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, int]:
    """[L_s, L_t] the mean over samples of (CKA of keys + CKA of values) / 2, in -1 to 1; and how many samples counted.

    both     two models, the student first, that read every batch; their tokens are t0 and t1
    keys     before the rotary embedding; the second model's tokens are carried to the first one's

    CKA is linear and unbiased: with few tokens in many dimensions the biased one calls everything alike. Samples with
    fewer than four matched tokens do not count.
    """
    student, teacher = both.shapes
    total, count = torch.zeros(student.num_layers, teacher.num_layers, dtype=torch.float64), 0
    for batch in batches:
        mine, theirs = both(batch, TeacherWants(rotary=False))
        iou = batch["t1.iou"]
        mask = batch["cot_mask"] & matched(iou)
        enough = mask.sum(1) >= FEWEST
        count += int(enough.sum())
        for part in ("keys", "values"):
            left, right = _grams(mine, part, mask), _grams(theirs, part, mask, normalised(iou))
            total += _cosines(left, right)[enough].sum(0).cpu().double() / 2
    if count == 0:
        raise DataError(f"no text has {FEWEST} matched tokens of reasoning", "choose a data set with longer steps")
    return total / count, count


def _grams(shown: TeacherKV, part: str, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """[L, B, N, N] centred Gram matrices of each layer, with tokens carried over by `weights`."""
    layers = [at_least_float32(layer) for layer in getattr(shown, part)]
    if weights is not None:
        layers = [apply_soft_alignment(layer, weights) for layer in layers]
    return torch.stack([_gram(flatten_heads(layer), mask, unbiased=True) for layer in layers])


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """[B, L_s, L_t] <K, L> / (|K| |L|); 0 where either does not vary."""
    inner = torch.einsum("sbij,tbij->bst", left, right)
    norms = torch.einsum("sb,tb->bst", *(grams.square().sum((2, 3)).sqrt() for grams in (left, right)))
    return torch.where(norms > 0, inner / torch.where(norms > 0, norms, 1.0), 0.0)
