"""The components of `kava smoke multi-teacher` about several teachers at once: fusion, routers, prototypes, codes."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn

from kava.errors import DataError
from kava.fuse import (
    Collapse,
    LearnableRouter,
    compute_similarity,
    compute_teacher_prototype,
    fuse_kvs_fixed,
    fuse_kvs_learnable,
    fuse_kvs_similarity,
    kmeans,
)
from kava.lab.selfcheck.alignment import draw, same
from kava.lab.selfcheck.context import Place, expect
from kava.losses.entropy import TARGETS, entropy_of, entropy_term
from kava.losses.zspace import LEAST, z_loss

B, H, N, D, S = 3, 2, 6, 8, 3


def try_fixed(place: Place) -> str:
    parts = _parts(place)
    expect(torch.equal(fuse_kvs_fixed(parts[:1]), parts[0]), "one teacher alone is changed")
    same(fuse_kvs_fixed(parts[:1] * 2, [0.7, 0.3]), parts[0], "the same teacher twice")
    same(fuse_kvs_fixed(parts, [0.2, 0.3, 0.5]), 0.2 * parts[0] + 0.3 * parts[1] + 0.5 * parts[2], "fixed weights")
    present = torch.ones(B, N, S, dtype=torch.bool, device=place.device)
    present[0, 1, 2] = present[1, 2, 0] = present[1, 2, 1] = present[1, 2, 2] = False
    out = fuse_kvs_fixed(parts, [0.2, 0.3, 0.5], present)
    same(out[0, :, 1], 0.4 * parts[0][0, :, 1] + 0.6 * parts[1][0, :, 1], "weights of those who are there")
    expect(not bool(out[1, :, 2].any()), "a token that nobody has is not 0")
    return "one is itself, twice is once, weights of absent teachers go to the others"


def try_similarity(place: Place) -> str:
    parts, prototypes = _parts(place), draw(place, S, D)
    for metric in ("cosine", "l2"):
        question = 2 * prototypes if metric == "cosine" else prototypes
        fused, weights = fuse_kvs_similarity(parts, question, prototypes, 0.1, metric)
        expect(weights.argmax(1).tolist() == list(range(S)), f"{metric}: a question like a teacher is not sent to it")
        same(fused, torch.einsum("bs,sb...->b...", weights, torch.stack(parts)), metric)
    order = [2, 0, 1]
    query = draw(place, B, D, seed=4)
    one = fuse_kvs_similarity(parts, query, prototypes)
    other = fuse_kvs_similarity([parts[s] for s in order], query, prototypes[order])
    same(other[1], one[1][:, order], "permuted weights")
    same(other[0], one[0], "permuted teachers")
    dots = compute_similarity(query, prototypes, "dot")
    same(dots, query @ prototypes.T, "dot")
    return "cosine, dot, l2: the most similar teacher weighs most; the order of teachers does not matter"


def try_learnable(place: Place) -> str:
    parts, query = _parts(place), draw(place, B, D, seed=4)
    torch.manual_seed(0)
    router = LearnableRouter(D, S, "mlp", dropout=0.0).to(place.device)
    fused, weights = fuse_kvs_learnable(parts, query, router)
    same(weights, torch.full((B, S), 1 / S), "weights before training")
    same(fused, torch.stack(parts).mean(0), "fusion before training")
    for token in (False, True):
        fused, weights = fuse_kvs_learnable(parts, draw(place, B, N, D) if token else query, router)
        expect(weights.shape == ((B, N, S) if token else (B, S)), f"weights of shape {tuple(weights.shape)}")
    router.zero_grad()
    (fused * parts[0]).sum().backward()
    reach = any(weight.grad is not None and bool(weight.grad.any()) for weight in router.parameters())
    expect(reach, "no gradient reaches the router through what it fuses")
    return "starts as the plain mean; per question or per token; the distance to the fused teacher trains the router"


def _try_router(kind: str, place: Place) -> str:
    """Three teachers, each of whom knows the answer to one kind of question; the others give noise."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    router = LearnableRouter(D, S, kind, dropout=0.0).to(place.device)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    centres = 2 * torch.randn(S, D, generator=random)
    found = 0.0
    for step in range(61):
        which = torch.randint(S, (96,), generator=random)
        query = (centres[which] + torch.randn(96, D, generator=random)).to(place.device)
        truth = torch.randn(96, 1, 1, D, generator=random)
        said = [torch.where((which == s)[:, None, None, None], truth, torch.randn(truth.shape, generator=random))
                for s in range(S)]  # fmt: skip
        fused, weights = fuse_kvs_learnable([part.to(place.device) for part in said], query, router)
        found = float((weights.argmax(1).cpu() == which).float().mean())
        if step < 60:
            optimizer.zero_grad()
            (fused - truth.to(place.device)).square().mean().backward()
            optimizer.step()
    expect(found > 0.9, f"finds the teacher who knows for {100 * found:.0f} % of new questions only")
    return f"after 60 updates it finds the teacher who knows for {100 * found:.0f} % of new questions"


def try_entropy(place: Place) -> str:
    even = torch.full((2, 1, 1, S), 1 / S)
    same(entropy_of(even), torch.full((2, 1, 1), log(S)), "entropy of equal weights")
    for target, up in zip(TARGETS, (True, False), strict=True):
        scores = torch.tensor([[1.0, 0.3, -0.5]], device=place.device, requires_grad=True)
        before = entropy_of(scores.softmax(-1)).detach()
        entropy_term(scores.softmax(-1)[:, None, None], target).backward()
        expect(scores.grad is not None, f"{target}: no gradient")
        after = entropy_of((scores - 0.5 * scores.grad).softmax(-1)).detach()  # type: ignore[operator]
        expect(
            bool((after > before) == up), f"{target} moves the entropy from {float(before):.3f} to {float(after):.3f}"
        )
    return f"{', '.join(TARGETS)} push the weights up and down; equal weights have ln {S}"


def try_collapse(place: Place) -> str:
    seen = []
    for top in (0.6, 0.97):
        meter = Collapse(0.95)
        meter.add(torch.tensor([[[[top, 1 - top]]]], device=place.device))
        window = meter.close()
        seen.append(window is not None and window.collapsed is not None)
    expect(seen == [False, True], f"the alarm at 0.95 sounds {seen} at mean weights 0.6 and 0.97")
    return "silent at a mean weight of 0.6, sounds at 0.97"


def _try_prototype(method: str, place: Place) -> str:
    centres = 6 * draw(place, 4, D, seed=3)
    texts = centres[:, None] + 0.1 * draw(place, 4, N, D)
    mask = torch.ones(4, N, device=place.device)
    mask[:, -1] = 0
    texts[:, -1] = 1e6  # padding: nobody may look
    found = compute_teacher_prototype(texts, method, mask, num_clusters=4)
    if method == "kmeans":
        gap = float(torch.cdist(centres, found).min(1).values.max())
        expect(gap < 0.5, f"four planted centres are missed by {gap:.2f}")
        try:
            kmeans(texts[0], N + 1)
        except DataError:
            return f"finds four planted centres to {gap:.2f}; more centres than points are refused"
        raise AssertionError(f"{N + 1} centres of {N} points were not refused")
    real = texts[:, :-1]
    wanted = {"mean": real.mean((0, 1)), "cls": real[:, 0].mean(0), "max": real.amax((0, 1))}[method]
    same(found, wanted, method)
    layers = compute_teacher_prototype(torch.stack([texts, -texts]), method, mask, num_clusters=4)
    expect(layers.shape == (2, D), f"two layers give {tuple(layers.shape)}")
    return "over the real tokens, layer by layer"


def try_codes(place: Place) -> str:
    kept = torch.ones(B, 20, dtype=torch.bool, device=place.device)
    one, other = draw(place, B, 20, 4), draw(place, B, 20, 4, seed=1)
    for kind in LEAST:
        code = nn.Parameter(one.clone())
        loss = z_loss(code, other, kept, kind)
        loss.backward()
        equal, apart = float(z_loss(one, one, kept, kind)), float(loss.detach())
        expect(equal < 0.05 * apart, f"{kind}: {equal:.3f} for the same codes, {apart:.3f} for others")
        expect(code.grad is not None and bool(code.grad.isfinite().all()), f"{kind}: no finite gradient")
    return f"{', '.join(LEAST)}: least for equal codes, finite gradient"


def _parts(place: Place) -> list[Tensor]:
    return [draw(place, B, H, N, D, seed=seed) for seed in range(S)]


COMPONENTS: dict[str, Callable[[Place], str]] = {
    "fuse_fixed": try_fixed,
    "fuse_similarity": try_similarity,
    "fuse_learnable": try_learnable,
    "router_mlp": lambda place: _try_router("mlp", place),
    "router_gate": lambda place: _try_router("gate", place),
    "router_attention": lambda place: _try_router("attention", place),
    "entropy": try_entropy,
    "collapse": try_collapse,
    "proto_mean": lambda place: _try_prototype("mean", place),
    "proto_cls": lambda place: _try_prototype("cls", place),
    "proto_max": lambda place: _try_prototype("max", place),
    "proto_kmeans": lambda place: _try_prototype("kmeans", place),
    "codes": try_codes,
}
