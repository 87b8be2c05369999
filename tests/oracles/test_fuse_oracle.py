"""Fusion, routing weights, prototypes, entropy and the distances of codes against plain loops."""

from __future__ import annotations

import oracle_fuse as slow
import pytest
import torch
from torch import Tensor, nn

from kava.fuse import (
    Learnable,
    LearnableRouter,
    Query,
    Similar,
    compute_routing_weights,
    compute_similarity,
    compute_teacher_prototype,
    fuse,
    fuse_kvs_similarity,
)
from kava.losses.entropy import TARGETS, entropy_of, entropy_term
from kava.losses.zspace import LEAST, z_counted, z_loss

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
B, H, N, D, S, L = 3, 2, 4, 5, 3, 2
KEPT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    actual = torch.as_tensor(actual).detach().double()
    wanted = torch.as_tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_token", [False, True])
def test_fused(dtype: torch.dtype, per_token: bool) -> None:
    parts = [draw(B, H, N, D, seed=seed, dtype=dtype) for seed in range(S)]
    weights = draw(B, N if per_token else 1, S, seed=9, dtype=dtype).softmax(-1)
    present = draw(B, N, S, seed=8) > -0.3
    present[1, 2] = False
    assert not present.all()
    assert present[0].any(-1).all()
    every = weights.expand(B, N, S).tolist()
    wanted = slow.fused([part.tolist() for part in parts], every, present.tolist())
    holes = [part.masked_fill(~present[..., s][:, None, :, None], float("nan")) for s, part in enumerate(parts)]
    close(fuse(holes, weights, present), wanted, TOLERANCE[dtype])
    everybody = slow.fused([part.tolist() for part in parts], every, torch.ones_like(present).tolist())
    close(fuse(parts, weights), everybody, TOLERANCE[dtype])


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("per_layer", [False, True])
def test_similar(metric: str, per_layer: bool) -> None:
    prototypes, values = draw(S, L, 2, D, seed=1), draw(B, L, D, seed=2)
    weights = Similar(prototypes, metric, per_layer)(Query(values=values), 0.7)
    wanted = [slow.similar(one, prototypes.tolist(), metric, 0.7, per_layer) for one in values.tolist()]
    close(weights[:, :, 0], wanted)


def test_one_layer_of_similarity() -> None:
    prototypes, query = draw(S, D, seed=1), draw(B, D, seed=2)
    wanted = [[slow.closeness(one, p, "l2") for p in prototypes.tolist()] for one in query.tolist()]
    close(compute_similarity(query, prototypes, "euclidean"), wanted)
    share = [slow.softmax(row, 0.3) for row in wanted]
    close(compute_routing_weights(query, prototypes, 0.3, "l2"), share)
    parts = [draw(B, N, D, seed=seed) for seed in range(S)]  # without heads
    fused, weights = fuse_kvs_similarity(parts, query, prototypes, 0.3, "l2")
    close(weights, share)
    close(fused, sum(part * weights[:, s, None, None] for s, part in enumerate(parts)))


@pytest.mark.parametrize("router", ["mlp", "gate", "attention"])
@pytest.mark.parametrize("layers", [1, L])
@pytest.mark.parametrize("per_token", [False, True])
def test_learnable(router: str, layers: int, per_token: bool) -> None:
    torch.manual_seed(0)
    fusion = Learnable(D, S, router, layers, per_token, num_layers=3).double().eval()
    for weight in fusion.parameters():
        nn.init.normal_(weight)
    query = Query(hidden=draw(B, D, seed=3), tokens=draw(B, N, D, seed=4))
    found = fusion(query, 0.8)
    asked = query.tokens if per_token else query.hidden[:, None]
    state = {name.removeprefix("router."): part.tolist() for name, part in fusion.state_dict().items()}
    wanted = torch.zeros_like(found)
    for b, sample in enumerate(asked.tolist()):
        for n, vector in enumerate(sample):
            vector = slow.normed(vector)
            if router == "attention":
                names = ("query.weight", "query.bias", "key.weight", "teachers")
                flat = slow.attention_scores(vector, *(state[name] for name in names))
            else:
                numbers = (0, 3, 6) if router == "mlp" else (0,)
                layer = [(state[f"net.{i}.weight"], state[f"net.{i}.bias"]) for i in numbers]
                flat = slow.mlp_scores(vector, layer)
            for number in range(layers):
                wanted[b, number, n] = wanted.new_tensor(slow.softmax(flat[number * S : number * S + S], 0.8))
    close(found, wanted.tolist())


def test_router_as_documented() -> None:
    """A query of one vector or of several; no axis of layers unless asked for."""
    router = LearnableRouter(D, S, "gate").double()
    nn.init.normal_(router.net[0].weight)
    one, many = draw(B, D), draw(B, N, D, seed=1)
    assert router(one).shape == (B, S)
    close(router(many)[:, 2], router(many[:, 2]).tolist())


@pytest.mark.parametrize("method", ["mean", "cls", "max"])
def test_prototypes(method: str) -> None:
    texts, mask = draw(B, N, D), torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    holes = texts.masked_fill(~mask[..., None], 1e6)
    close(compute_teacher_prototype(holes, method, mask), slow.prototype(texts.tolist(), mask.tolist(), method))
    layers = torch.stack([holes, 2 * holes])
    found = compute_teacher_prototype(layers, method, mask)
    assert found.shape == (2, D)
    close(found[1], (2 * found[0]).tolist())


def test_entropy() -> None:
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    close(entropy_of(weights), [slow.entropy(row) for row in weights.tolist()])


@pytest.mark.parametrize("target", TARGETS)
def test_entropy_push(target: str) -> None:
    weights = draw(B, L, N, S).softmax(-1)
    close(entropy_term(weights, target, KEPT), slow.entropy_push(weights.tolist(), KEPT.tolist(), target))
    all_kept = torch.ones_like(KEPT)
    close(entropy_term(weights, target), slow.entropy_push(weights.tolist(), all_kept.tolist(), target))
    one = weights[:, :, :1]
    close(entropy_term(one, target, KEPT), slow.entropy_push(one.tolist(), all_kept[:, :1].tolist(), target))


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_codes(kind: str, dtype: torch.dtype) -> None:
    student, target = (draw(B, N, 3, seed=seed, dtype=dtype) for seed in (1, 2))
    wanted = slow.codes(student.tolist(), target.tolist(), KEPT.tolist(), kind)
    holes = student.masked_fill(~KEPT[..., None], 7.0)
    close(z_loss(holes, target, KEPT, kind), wanted, TOLERANCE[dtype])
    apart = [z_loss(holes[b : b + 1], target[b : b + 1], KEPT[b : b + 1], kind) for b in range(B)]
    close(sum(apart), wanted, TOLERANCE[dtype])  # what else is in the batch changes nothing
    assert z_counted(KEPT, kind).tolist() == [True, True, False]
