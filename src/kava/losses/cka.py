"""Linear centred kernel alignment (CKA): similarity of two sets of vectors of any widths."""

import torch
from torch import Tensor

from kava.shapes import at_least_float32


def cka(left: Tensor, right: Tensor, mask: Tensor, unbiased: bool = False) -> Tensor:
    """[B] linear CKA of each sample over its real tokens; CKA(X, X) = 1. left [B, N, p]; right [B, N, q]; mask [B, N].

    <K, L> / (|K| |L|) of the centred Gram matrices K = X X^T, L = Y Y^T, an N x N product without p or q squared.
    biased: rows centred. unbiased: diagonal 0 and U-centred, which corrects for the chance similarity of few tokens in
    many dimensions; it may be negative. 0 with fewer than two tokens (unbiased four), or without variation.
    """
    grams = [centred_gram(part, mask, unbiased) for part in (left, right)]
    inner = (grams[0] * grams[1]).sum((1, 2))
    norms = [gram.square().sum((1, 2)) for gram in grams]
    square = norms[0] * norms[1]
    counted = (mask.sum(1) >= (4 if unbiased else 2)) & (square > 0)
    return torch.where(counted, inner / torch.where(counted, square, 1.0).sqrt(), 0.0)


def centred(vectors: Tensor, mask: Tensor) -> Tensor:
    """[B, N, d] less the mean of each sample's real tokens; 0 at the others."""
    vectors = at_least_float32(vectors).masked_fill(~mask[..., None], 0.0)
    mean = vectors.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
    return (vectors - mean).masked_fill(~mask[..., None], 0.0)


def centred_gram(vectors: Tensor, mask: Tensor, unbiased: bool) -> Tensor:
    """[B, N, N] centred Gram matrix, 0 outside the real tokens."""
    vectors = centred(vectors, mask)
    scale = vectors.square().sum((1, 2), keepdim=True)  # CKA ignores the scale, and fourth powers would overflow
    gram = vectors @ vectors.transpose(1, 2) / torch.where(scale > 0, scale, 1.0)
    if not unbiased:
        return gram
    off = mask[..., None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    gram = gram.masked_fill(~off, 0.0)
    count = mask.sum(1)[:, None, None]
    few = (count - 2).clamp(min=1)
    rows = gram.sum(2, keepdim=True) / few
    total = gram.sum((1, 2), keepdim=True) / (few * (count - 1).clamp(min=1))
    return (gram - rows - rows.transpose(1, 2) + total).masked_fill(~off, 0.0)
