"""The components of `kava smoke multi-teacher` about alignment: one teacher brought to the student's shape."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.align import Aligner, HeadDimAdapter, layer_map, mix
from kava.align.heads import match_heads
from kava.align.layers import STRATEGIES
from kava.align.length import align_sequence_lengths, apply_soft_alignment, pad_to_length, truncate
from kava.align.rope import Rotary, rotate, scaled, unrotate
from kava.align.tokens import build_char_align_matrix, coverage, iou_matrix, matched, normalised, spans_of
from kava.lab.selfcheck.context import Place, expect, nearness
from kava.lab.selfcheck.foreign_teachers import KINDS, MIXED, tokenizer_of
from kava.losses.cka import cka
from kava.teachers.base import KVShape

CLOSE = 1e-5
CHAIN = "3+4=7 7*2=14 14-1=13"
B, H, N, D, S = 3, 2, 6, 8, 3


def try_tokens(place: Place) -> str:
    shares: list[float] = []
    text = " ".join((CHAIN, *MIXED))
    tokenizers = {kind: tokenizer_of(place, kind) for kind in KINDS}
    for mine, student in tokenizers.items():
        for theirs, teacher in tokenizers.items():
            matrix = build_char_align_matrix(text, teacher, student)
            spans = spans_of(text, student), spans_of(text, teacher)
            sums = matrix.sum(1)
            expect(bool(((sums - 1).abs() < CLOSE).logical_or(sums == 0).all()), f"{mine}/{theirs}: rows sum to {sums}")
            for i, j in matrix.nonzero().tolist():
                (a, b), (c, d) = spans[0][i], spans[1][j]
                expect(max(a, c) < min(b, d), f"{mine} token {i} is matched with {theirs} token {j} of other text")
            if mine == theirs:
                expect(torch.equal(matrix, torch.eye(len(sums))), f"{mine} with itself is not the identity")
            spans = spans_of(CHAIN, student), spans_of(CHAIN, teacher)
            shares.append(coverage(iou_matrix(*spans)))
            expect(shares[-1] > 0.6, f"{theirs} matches {100 * shares[-1]:.0f} % of a chain's {mine} tokens only")
    return f"{', '.join(KINDS)} with each other, two scripts; of a chain at least {100 * min(shares):.0f} % are matched"


def try_time(place: Place) -> str:
    teacher, student = draw(place, B, H, N, D), draw(place, B, H, N + 3, D, seed=1)
    padded, mask = pad_to_length(teacher, N + 3)
    expect(torch.equal(padded[:, :, :N], teacher) and not bool(padded[:, :, N:].any()), "padding changes what is there")
    expect(mask.sum(1).tolist() == [N] * B, "the mask of padding is wrong")
    long, short, *masks = align_sequence_lengths(student, teacher)
    expect(long.shape == short.shape == student.shape, "the longer one was cut")
    expect([int(one[0].sum()) for one in masks] == [N + 3, N], "the masks do not tell which tokens are real")
    iou = torch.rand(B, N + 3, N, generator=torch.Generator().manual_seed(2)).to(place.device)
    iou[:, 4] = 0
    moved, _, there, _ = align_sequence_lengths(teacher, student, normalised(iou))
    wanted = torch.einsum("bij,bhjd->bhid", normalised(iou), teacher)
    same(moved, wanted, "soft alignment")
    same(apply_soft_alignment(teacher, normalised(iou)), wanted, "soft alignment")
    expect(
        torch.equal(there, matched(iou)) and not bool(there[:, 4].any()), "a token without a partner counts as matched"
    )
    expect(truncate(student, N).shape == teacher.shape, "truncate does not cut")
    return f"{N} and {N + 3} tokens padded, masked, carried softly; cut only by truncate"


def try_layers(place: Place) -> str:
    for strategy in STRATEGIES:
        for num_student, num_teacher in ((4, 7), (3, 3), (6, 6), (5, 12)):
            entries = layer_map(num_student, num_teacher, strategy)
            expect(all(abs(sum(w for _, w in entry) - 1) < CLOSE for entry in entries), f"{strategy}: weights")
            if strategy != "skip":
                ends = entries[0][0][0], entries[-1][-1][0]
                expect(ends == (0, num_teacher - 1), f"{strategy}: {num_student} layers end at {ends} of {num_teacher}")
    layers = [torch.full((1,), float(layer)) for layer in range(7)]
    places = [float(mix(layers, entry)) for entry in layer_map(4, 7)]
    expect(places == [0.0, 2.0, 4.0, 6.0], f"ratio puts 4 layers at {places} of 7")
    one, real = draw(place, B, N, D), torch.ones(B, N, dtype=torch.bool, device=place.device)
    same(cka(one, one, real), torch.ones(B), "CKA of a layer with itself")
    return f"{', '.join(STRATEGIES)}: weights sum to 1, first to first and last to last; CKA(X, X) = 1"


def try_heads(place: Place) -> str:
    sizes = ((12, 2), (3, 2), (2, 3), (5, 3), (2, 2))
    for theirs, mine in sizes:
        for kind in ("group_mean", "conv", "matched"):
            adapter = HeadDimAdapter(D, 4, theirs, mine, kind).to(place.device)
            rows = adapter.shares.detach().sum(1)
            expect(bool(((rows - 1).abs() < CLOSE).all()), f"{kind} {theirs} to {mine}: shares sum to {rows.tolist()}")
            expect(bool((adapter.shares.detach().sum(0) > 0).all()), f"{kind} {theirs} to {mine}: a head is left out")
            out = adapter(draw(place, B, theirs, N, D))
            expect(out.shape == (B, mine, N, 4), f"{kind} {theirs} to {mine}: {tuple(out.shape)}")
            out.square().sum().backward()
            dead = [name for name, part in adapter.named_parameters() if part.grad is None or not bool(part.grad.any())]
            expect(not dead, f"{kind} {theirs} to {mine}: no gradient reaches {dead}")
    equal = draw(place, B, H, N, D)
    same(HeadDimAdapter(D, D, H, H).to(place.device)(equal), equal, "an adapter between equal sizes")
    swapped = match_heads(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
    expect(swapped.tolist() == [[0.0, 1.0], [1.0, 0.0]], "matched heads are not the most alike")
    pairs = ", ".join(f"{theirs} to {mine}" for theirs, mine in sizes)
    return f"heads {pairs}, by mean, trained and matched; gradient in all weights; equal sizes: the identity"


def try_rope(place: Place) -> str:
    keys, where = draw(place, B, H, N, D), torch.arange(N, device=place.device).expand(B, -1)
    worst = 0.0
    for method in ("none", "linear", "ntk", "dynamic"):
        for length in (512, 2048):
            cos, sin = scaled(10000.0, D, method, 512, length).angles(where)
            worst = max(worst, float((unrotate(rotate(keys, cos, sin), cos, sin) - keys).abs().max()))
        if method != "none":
            own, stretched = scaled(10000.0, D, "none", 512, 512), scaled(10000.0, D, method, 512, 512)
            same(stretched.inv_freq, own.inv_freq, f"{method} scaling by 1")
            longer = scaled(10000.0, D, method, 512, 2048).inv_freq
            expect(float(longer[-1]) < float(own.inv_freq[-1]), f"{method} scaling by 4 changes nothing")
    expect(worst < CLOSE, f"turned and turned back, keys differ by {worst:.1e}")
    rotary = scaled(10000.0, D, "none", 512, 512)
    products = []
    for shift in (0, 7):
        cos, sin = rotary.angles(where + shift)
        turned = rotate(keys, cos, sin)
        products.append(turned @ turned.transpose(2, 3))
    same(products[0], products[1], "a product of turned keys under a shift of all positions")
    return f"turned and turned back, {nearness(worst)}; linear, ntk, dynamic; only distances count"


def try_pipeline(place: Place) -> str:
    shape = KVShape(3, H, D, H * D)
    aligner = Aligner(shape, shape, layer_map(3, 3)).to(place.device)
    rotary = Rotary(scaled(10000.0, D, "none", 512, 512).inv_freq)
    cos, sin = rotary.angles(torch.arange(N, device=place.device).expand(B, -1))
    keys, values = ([draw(place, B, H, N, D, seed=seed + more) for seed in range(3)] for more in (0, 9))
    before = [unrotate(key, cos, sin) for key in keys]
    with torch.no_grad():
        got, own = aligner(before, values, torch.eye(N, device=place.device).expand(B, -1, -1))
        pairs = zip([*(rotate(key, cos, sin) for key in got), *own], [*keys, *values], strict=True)
        worst = max(float((mine - old).abs().max()) for mine, old in pairs)
    expect(worst < CLOSE, f"a teacher like the student comes out changed by {worst:.1e}")
    other = Aligner(KVShape(5, 3, 10, 30), shape, layer_map(3, 5)).to(place.device)
    theirs = [draw(place, B, 3, N + 4, 10, seed=seed) for seed in range(5)]
    out = other(theirs, theirs, torch.rand(B, N, N + 4, device=place.device))[0]
    expect([tuple(one.shape) for one in out] == [(B, H, N, D)] * 3, "another shape does not come out as the student's")
    return f"un-rotate, tokens, layers, size, heads, rotate: a teacher like the student stays itself, {nearness(worst)}"


def draw(place: Place, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(place.device)


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    gap = float((found.detach().cpu() - wanted.detach().cpu()).abs().max())
    expect(gap < CLOSE, f"{what}: off by {gap:.1e}")


COMPONENTS = {
    "tokens": try_tokens,
    "time": try_time,
    "layers": try_layers,
    "heads": try_heads,
    "rope": try_rope,
    "pipeline": try_pipeline,
}
