"""What fusion promises: one is itself, twice is once, order does not matter, absent teachers are left out, and alarms."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor, nn

from kava.config.fields import ROUTERS
from kava.errors import ConfigError, DataError, ModelError
from kava.fuse import (
    Collapse,
    Fixed,
    Fusion,
    Learnable,
    LearnableRouter,
    Query,
    Similar,
    annealed,
    compute_similarity,
    compute_teacher_prototype,
    fuse,
    fuse_kvs_fixed,
    fuse_kvs_learnable,
    kmeans,
    shares,
)
from kava.losses.entropy import entropy_of, entropy_term
from kava.losses.guard import variance_guard
from kava.losses.zspace import z_counted, z_loss

B, H, N, D, S, L, E = 3, 2, 4, 5, 3, 2, 8
ORDER = [2, 0, 1]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def query(seed: int = 5) -> Query:
    return Query(hidden=draw(B, E, seed=seed), tokens=draw(B, N, E, seed=seed), values=draw(B, L, E, seed=seed))


def parts() -> list[Tensor]:
    return [draw(B, H, N, D, seed=seed) for seed in range(S)]


def learnable(kind: str, teachers: int = S, **settings: bool | int) -> Learnable:
    torch.manual_seed(0)
    fusion = Learnable(E, teachers, kind, **settings).eval()
    for weight in fusion.parameters():
        nn.init.normal_(weight, std=0.5)
    return fusion


def kinds(teachers: int = S) -> dict[str, Fusion]:
    found: dict[str, Fusion] = {
        "fixed": Fixed([1 / teachers] * teachers),
        "similar": Similar(draw(teachers, L, 2, E, seed=3)),
        "similar, layers": Similar(draw(teachers, L, 2, E, seed=3), "l2", per_layer=True),
    }
    for kind in ROUTERS:
        found[kind] = learnable(kind, teachers)
        found[f"{kind}, layers and tokens"] = learnable(kind, teachers, layers=L, per_token=True)
    return found


@pytest.mark.parametrize("name", kinds())
def test_weights_are_weights(name: str) -> None:
    weights = kinds()[name](query())
    assert weights.dim() == 4
    assert weights.shape[-1] == S
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if "layers" in name:
        assert weights.shape[1] == L
        assert not torch.allclose(weights[:, 0], weights[:, 1])
    if "tokens" in name:
        assert weights.shape[2] == N


@pytest.mark.parametrize("name", kinds(1))
def test_a_mixture_of_one_is_that_one(name: str) -> None:
    weights = kinds(1)[name](query())
    only = parts()[0]
    here = draw(B, N, 1, seed=7) > 0
    assert torch.equal(fuse([only], weights[:, 0]), only)
    found = fuse([only], weights[:, 0], here)
    assert torch.equal(found, only * here[:, None])


@pytest.mark.parametrize("name", kinds())
def test_the_same_teacher_several_times_is_once(name: str) -> None:
    only = parts()[0]
    torch.testing.assert_close(fuse([only] * S, kinds()[name](query())[:, 0]), only, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", kinds())
def test_permuted_teachers_have_permuted_weights(name: str) -> None:
    fusion = kinds()[name]
    before = fusion(query(), 0.7)
    with torch.no_grad():
        _permute(fusion)
    after = fusion(query(), 0.7)
    torch.testing.assert_close(after, before[..., ORDER], rtol=1e-6, atol=1e-6)
    said = parts()
    one, other = fuse(said, before[:, 0]), fuse([said[old] for old in ORDER], after[:, 0])
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def _permute(fusion: Fusion) -> None:
    if isinstance(fusion, Fixed):
        fusion.weights.copy_(fusion.weights[ORDER])
    elif isinstance(fusion, Similar):
        fusion.prototypes.copy_(fusion.prototypes[ORDER])
    elif isinstance(fusion, Learnable):
        router = fusion.router
        rows = [weight for weight in router.parameters() if len(weight) == router.rows]
        assert rows
        for row in rows:
            row.copy_(row.unflatten(0, (-1, S))[:, ORDER].flatten(0, 1))


def test_training_does_not_know_the_order_of_teachers() -> None:
    """A router of mlp or gate starts with equal weights, so even the same seed leaves the order open."""
    found = []
    for order in (list(range(S)), ORDER):
        torch.manual_seed(0)
        fusion = Learnable(E, S, "mlp", dropout=0.0)
        optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
        said = [parts()[old] for old in order]
        for _ in range(5):
            loss = (fuse(said, fusion(query())[:, 0]) - draw(B, H, N, D, seed=9)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(fusion(query()).detach())
    assert float((found[0] - 1 / S).abs().max()) > 0.01
    torch.testing.assert_close(found[1], found[0][..., ORDER], rtol=1e-6, atol=1e-6)


def test_who_has_no_entry_is_left_out() -> None:
    said, present = parts(), torch.ones(B, N, S, dtype=torch.bool)
    present[0, 1, 0] = False
    present[0, 2] = False
    weights = torch.tensor([0.5, 0.3, 0.2])[None, None]
    said[0][0, :, 1] = float("nan")
    out = fuse(said, weights, present)
    torch.testing.assert_close(out[0, :, 1], 0.6 * said[1][0, :, 1] + 0.4 * said[2][0, :, 1])
    assert not bool(out[0, :, 2].any())
    assert shares(weights, present)[0, 2].tolist() == [0, 0, 0]
    lone = torch.tensor([1.0, 0.0, 0.0])[None, None]
    assert not bool(fuse(said, lone, present)[0, :, 1].any())  # only teachers without a weight are there


def test_gradient_reaches_router_and_teachers_and_stays_finite() -> None:
    said = [part.requires_grad_() for part in parts()]
    present = draw(B, N, S, seed=2) > 0
    present[0, 0] = False
    fusion = learnable("mlp")
    fuse(said, fusion(query())[:, 0], present).square().sum().backward()
    for number, part in enumerate(said):
        assert part.grad is not None
        reach = part.grad.abs().sum((1, 3)) > 0
        assert torch.equal(reach, present[..., number])
    assert all(bool(weight.grad.isfinite().all() and weight.grad.any()) for weight in fusion.parameters())


def test_half_precision_is_summed_in_single() -> None:
    said = [part.bfloat16() for part in parts()]
    weights = torch.tensor([0.5, 0.3, 0.2])[None, None]
    out = fuse(said, weights)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, fuse([part.float() for part in said], weights).bfloat16())


def test_the_three_calls_of_the_guide() -> None:
    said = parts()
    torch.testing.assert_close(fuse_kvs_fixed(said), sum(said) / S)
    torch.testing.assert_close(fuse_kvs_fixed(said, [1, 1, 2]), fuse_kvs_fixed(said, [0.25, 0.25, 0.5]))
    router = LearnableRouter(E, S, "gate")
    fused, weights = fuse_kvs_learnable(said, draw(B, E), router)
    torch.testing.assert_close(fused, sum(said) / S)
    assert weights.shape == (B, S)
    fused, weights = fuse_kvs_learnable(said, draw(B, N, E), router)
    assert weights.shape == (B, N, S)
    with pytest.raises(ConfigError, match="above 0"):
        fuse_kvs_fixed(said, [0, 0, 0])


def test_temperature_sharpens() -> None:
    for name, fusion in kinds().items():
        if name != "fixed":
            soft, sharp = (entropy_of(fusion(query(), temperature)).mean() for temperature in (2.0, 0.2))
            assert sharp < soft < log(S), name


def test_annealing() -> None:
    found = [annealed(1.0, 0.1, epoch) for epoch in (0, 1, 5, 9)]
    assert found == pytest.approx([1.0, 0.9, 0.5, 0.5])
    assert annealed(0.3, 0.1, 4) == 0.3  # never warmer than it began


def test_a_router_looks_at_size_free_states() -> None:
    """A state of ten times the size gives the same weights; one without any variation is no crash."""
    fusion = learnable("mlp")
    one, ten = (fusion(Query(hidden=factor * draw(B, E))) for factor in (1, 10))
    torch.testing.assert_close(one, ten, rtol=1e-3, atol=1e-4)
    assert bool(fusion(Query(hidden=torch.ones(B, E))).isfinite().all())


# prototypes


def test_kmeans_finds_planted_centres_and_rests_there() -> None:
    centres = 8 * draw(4, D)
    points = (centres[:, None] + 0.3 * draw(4, 40, D, seed=1)).flatten(0, 1)
    found = kmeans(points, 4, seed=3)
    assert torch.equal(found, kmeans(points, 4, seed=3))
    distance = torch.cdist(points, found)
    for number in range(4):  # each centre is the mean of its points
        torch.testing.assert_close(found[number], points[distance.argmin(1) == number].mean(0))
    assert float(torch.cdist(found, centres).min(1).values.max()) < 0.5
    texts = points.view(8, 20, D)
    assert torch.equal(compute_teacher_prototype(texts, "kmeans", num_clusters=4, seed=3), found)
    layers = compute_teacher_prototype(torch.stack([texts, -texts]), "kmeans", num_clusters=4, seed=3)
    assert layers.shape == (2, 4, D)


def test_more_centres_than_points() -> None:
    points = draw(3, D).repeat(5, 1)
    with pytest.raises(DataError, match=r"4 centres, but the corpus has 3 different points"):
        kmeans(points, 4)
    with pytest.raises(DataError, match="no tokens"):
        compute_teacher_prototype(draw(2, 3, D), attention_mask=torch.zeros(2, 3))


def test_the_nearest_centre_counts() -> None:
    prototypes = torch.stack([torch.stack([draw(E, seed=1), draw(E, seed=2)]), torch.stack([draw(E, seed=3)] * 2)])
    close = draw(E, seed=2)[None] * 3
    assert float(compute_similarity(close, prototypes)[0, 0]) == pytest.approx(1, abs=1e-6)
    assert compute_similarity(close, prototypes).argmax() == 0
    assert compute_similarity(close / 3, prototypes, "l2")[0, 0] == pytest.approx(0, abs=1e-6)
    assert not bool(compute_similarity(torch.zeros(1, E), prototypes).any())


# entropy and codes


def test_entropy_has_a_finite_slope_where_a_weight_is_zero() -> None:
    scores = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    weights = scores.softmax(-1)
    assert float(weights[0, 2].detach()) == 0
    assert float(entropy_of(weights.detach())) == 0
    entropy_term(weights[:, None, None], "specialized").backward()
    assert bool(scores.grad.isfinite().all())


def test_entropy_push_is_zero_at_its_aim() -> None:
    even, sure = torch.full((2, 1, 1, S), 1 / S), torch.eye(S)[:2, None, None]
    assert float(entropy_term(even, "diverse")) == pytest.approx(0, abs=1e-6)
    assert float(entropy_term(sure, "specialized")) == 0
    assert float(entropy_term(sure, "diverse")) == pytest.approx(2 * log(S))
    assert float(entropy_term(even, "specialized")) == pytest.approx(2 * log(S))


@pytest.mark.parametrize("kind", ["mse", "cosine", "barlow"])
def test_codes_agree_with_themselves_and_may_be_constant(kind: str) -> None:
    codes, kept = draw(B, 30, 4), torch.ones(B, 30, dtype=torch.bool)
    other = draw(B, 30, 4, seed=1)
    assert float(z_loss(codes, codes, kept, kind)) < 0.05 * float(z_loss(codes, other, kept, kind))
    flat = torch.ones(B, 30, 4, requires_grad=True)
    z_loss(flat, other.requires_grad_(), kept, kind).backward()
    assert bool(flat.grad.isfinite().all())
    assert bool(other.grad.isfinite().all())
    few = torch.zeros(B, 30, dtype=torch.bool)
    few[0, 3] = True
    assert int(z_counted(few, kind).sum()) == (0 if kind == "barlow" else 1)
    assert z_loss(codes, codes, few, kind) == pytest.approx(0, abs=1e-6)


def test_codes_that_may_shrink_do_and_the_guard_holds_them() -> None:
    """Both sides are trained: without a guard the cheapest code is a point."""
    spread = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        mine, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
        optimizer = torch.optim.Adam([*mine.parameters(), *theirs.parameters()], lr=0.02)
        kept = torch.ones(8, 10, dtype=torch.bool)
        x, y = draw(8, 10, 6), draw(8, 10, 6, seed=1)
        for _ in range(120):
            codes, aim = mine(x), theirs(y)
            guard = sum(variance_guard(part, kept, torch.ones(4)) for part in (codes, aim)) / 16
            loss = z_loss(codes, aim, kept) / 8 + weight * guard
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spread.append(float(theirs(y).std(1).mean().detach()))
    assert spread[0] < 0.05
    assert spread[1] > 0.3


# collapse


def test_windows_of_the_meter() -> None:
    meter = Collapse(0.95)
    assert meter.close() is None
    meter.add(torch.tensor([[[[0.8, 0.2]], [[0.6, 0.4]]]]))  # [1, 2 layers, 1, 2]
    meter.add(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]] * 3))
    window = meter.close()
    assert window is not None
    assert window.weights == pytest.approx([0.925, 0.075])
    assert window.by_layer[1] == pytest.approx([0.9, 0.1])
    assert window.entropy == pytest.approx((0.5004 + 0.6730) / 2 / 4, abs=1e-4)
    assert (window.collapsed, window.unused) == (None, [])
    meter.add(torch.tensor([[[[0.03, 0.97]]]]))  # an alarm knows its own window only
    window = meter.close()
    assert window is not None
    assert (window.collapsed, window.unused) == (1, [0])


def test_padding_does_not_count_and_one_teacher_never_collapses() -> None:
    meter = Collapse(0.95)
    weights = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]], [[[1.0, 0.0], [1.0, 0.0]]]])  # [2, 1, 2 tokens, 2]
    meter.add(weights, torch.tensor([[True, False], [False, False]]))
    window = meter.close()
    assert window is not None
    assert window.weights == [0.5, 0.5]
    assert window.entropy == pytest.approx(log(2))
    meter.add(weights, torch.zeros(2, 2, dtype=torch.bool))
    assert meter.close() is None
    meter.add(torch.ones(4, 1, 1, 1))
    assert meter.close().collapsed is None


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        Fixed([0.5, 0.6])
    with pytest.raises(ConfigError, match="unknown router"):
        LearnableRouter(E, S, "random")
    with pytest.raises(ConfigError, match="unknown similarity"):
        Similar(draw(S, L, 1, E), "jaccard")
    with pytest.raises(ConfigError, match="unknown prototype"):
        compute_teacher_prototype(draw(B, N, D), "median")
    with pytest.raises(ModelError, match="unequal shape"):
        fuse([draw(B, H, N, D), draw(B, H, N, D + 1)], torch.ones(1, 1, 2) / 2)
    with pytest.raises(ModelError, match="2 teachers to fuse, but weights for 3"):
        fuse(parts()[:2], torch.ones(1, 1, 3) / 3)
    with pytest.raises(ModelError, match="prototypes of 2 layers x 8"):
        Similar(draw(S, L, 1, E))(Query(values=draw(B, L + 1, E)))
    with pytest.raises(ModelError, match="the query has none"):
        learnable("gate")(Query())
