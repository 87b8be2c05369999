"""CKA of the layers of two models on the same texts, for a layer map."""

from collections.abc import Iterable

import torch
from torch import Tensor

from kava.align import flatten_heads
from kava.align.length import apply_soft_alignment
from kava.align.tokens import matched, normalised
from kava.errors import DataError
from kava.losses.cka import centred_gram
from kava.shapes import at_least_float32
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.teacher_set import TeacherSet

MIN_TOKENS = 4  # of the unbiased form


@torch.no_grad()
def layer_similarity(models: TeacherSet, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, int]:
    """[L_s, L_t] the mean over samples of (CKA of keys + CKA of values) / 2, in -1 to 1; and the number of samples.

    models   two models, the student first; their tokens in a batch are t0 and t1
    keys     before the rotary embedding; the second model's tokens are mapped to those of the first

    CKA is linear and unbiased: with few tokens in many dimensions the biased form is always near 1. Samples with fewer
    than four matched tokens do not count.
    """
    sizes = [shape.num_layers for shape in models.shapes]
    total, count = torch.zeros(*sizes, dtype=torch.float64), 0
    for batch in batches:
        student, teacher = models(batch, TeacherWants(rotary=False))
        iou = batch["t1.iou"]
        mask = batch["cot_mask"] & matched(iou)
        enough = mask.sum(1) >= MIN_TOKENS
        count += int(enough.sum())
        for part in ("keys", "values"):
            left, right = _grams(student, part, mask), _grams(teacher, part, mask, normalised(iou))
            total += _cosines(left, right)[enough].sum(0).cpu().double() / 2
    if count == 0:
        raise DataError(f"no text has {MIN_TOKENS} matched tokens of reasoning", "choose a data set with longer steps")
    return total / count, count


def _grams(entries: TeacherKV, part: str, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """[L, B, N, N] centred Gram matrices of each layer, with tokens mapped by `weights`."""
    layers = [at_least_float32(layer) for layer in getattr(entries, part)]
    if weights is not None:
        layers = [apply_soft_alignment(layer, weights) for layer in layers]
    return torch.stack([centred_gram(flatten_heads(layer), mask, unbiased=True) for layer in layers])


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """[B, L_s, L_t] <K, L> / (|K| |L|); 0 if either is constant."""
    inner = torch.einsum("sbij,tbij->bst", left, right)
    norms = torch.einsum("sb,tb->bst", *(grams.square().sum((2, 3)).sqrt() for grams in (left, right)))
    return torch.where(norms > 0, inner / torch.where(norms > 0, norms, 1.0), 0.0)
