"""Every score and every choice against plain loops, over heads x pads x N_C."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import oracle_compress as slow
import pytest
import torch
from torch import Tensor

from kava.compress import Compressed, Samples, importance, redundancy
from kava.compress.crop import Crop
from kava.compress.full import Full
from kava.compress.random_ import Random
from kava.compress.rkv import RKV
from kava.compress.rkv_original import RKVOriginal
from kava.compress.shuffle import ShuffleExamples, ShuffleTime
from kava.compress.steps import Steps
from kava.compress.uniform import Uniform
from matrix import EPOCH, HEADS, KEEP, LENGTHS, PADS, PLAIN, SEED, TOLERANCE, Case, cases, compress, make_case

everywhere = pytest.mark.parametrize(("heads", "pads"), list(itertools.product(HEADS, PADS)))
precisions = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def lists(tensor: Tensor) -> list:
    return tensor.double().tolist() if tensor.is_floating_point() else tensor.tolist()


def slow_importance(case: Case) -> list:
    return slow.importance(lists(case.queries), lists(case.keys), lists(case.answer_mask), lists(case.mask), case.scale)


def close(actual: Tensor, expected: list, tolerance: float) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual.double(), wanted, rtol=0.0, atol=tolerance)


def columns(out: Compressed, heads: int) -> list:
    """index[b][h] without the empty slots."""
    return [[out.index[b, h][out.kept[b, h]].tolist() for h in range(heads)] for b in range(len(out.index))]


def same_for_heads(index: list, case: Case) -> list:
    return [[row] * case.keys.shape[1] for row in index]


def is_best(score: list, allowed: list, chosen: list, tolerance: float) -> None:
    """Nothing left out scores higher than anything kept: right for ties and rounding too."""
    for b, heads in enumerate(score):
        for h, row in enumerate(heads):
            kept = set(chosen[b][h])
            rest = [row[n] for n in slow.real(allowed[b]) if n not in kept]
            assert not kept or not rest or min(row[n] for n in kept) >= max(rest) - tolerance


# importance and redundancy


@precisions
@everywhere
def test_importance(heads: str, pads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, pads, dtype):
        close(case.importance(), slow_importance(case), TOLERANCE[dtype])


@everywhere
def test_importance_sums_to_one(heads: str, pads: str) -> None:
    for case in cases(heads, pads):
        wanted = case.mask.any(1).double()[:, None].expand(-1, case.keys.shape[1])
        torch.testing.assert_close(case.importance().sum(-1), wanted, rtol=0.0, atol=1e-12)


def test_importance_takes_the_largest_logit_of_a_group_before_the_softmax() -> None:
    """Two query heads that look at different entries: the mean of softmaxes, or their maximum, would differ."""
    queries = torch.tensor([[[[4.0, 0.0]], [[0.0, 3.0]]]], dtype=torch.float64)
    keys = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.bool)
    share = importance(queries, keys, ones[:, :1], ones, scale=1.0)
    close(share, [[slow.softmax([4.0, 3.0, 0.0])]], 1e-12)


@precisions
@everywhere
def test_redundancy(heads: str, pads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, pads, dtype):
        close(redundancy(case.keys, case.mask), slow.redundancy(lists(case.keys), lists(case.mask)), TOLERANCE[dtype])


def test_redundancy_is_high_for_the_entry_unlike_the_others() -> None:
    keys = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-0.2, 1.0]], dtype=torch.float64)[None, None]
    assert redundancy(keys, torch.ones(1, 4, dtype=torch.bool)).argmax() == 3


# scores and what they keep

SCORED = {
    **{f"rkv-{x}": (RKV(lambda_=x), slow.rkv, x) for x in (0.0, 0.1, 1.0)},
    **{f"rkv_original-{x}": (RKVOriginal(lambda_=x), slow.rkv_original, x) for x in (0.0, 0.07, 0.5, 1.0)},
}


@precisions
@everywhere
@pytest.mark.parametrize("name", SCORED)
def test_score(name: str, heads: str, pads: str, dtype: torch.dtype) -> None:
    compressor, oracle, lambda_ = SCORED[name]
    for case in cases(heads, pads, dtype):
        mask = lists(case.mask)
        score = oracle(lists(case.keys), mask, slow_importance(case), lambda_)
        chosen = columns(compress(compressor, case), case.keys.shape[1])
        is_best(score, mask, chosen, TOLERANCE[dtype])
        if dtype == torch.float64 and name != "rkv_original-1.0":  # a pooled importance alone is full of ties
            assert chosen == slow.best(score, mask, KEEP)


def test_rkv_with_lambda_zero_neither_needs_nor_reads_the_importance() -> None:
    case = make_case("gqa", "left", LENGTHS["mixed"])
    assert not RKV(lambda_=0.0).needs_importance
    weight = case.importance()
    without = RKV(lambda_=0.0)(case.keys, case.values, case.mask, None, KEEP)
    given = RKV(lambda_=0.0)(case.keys, case.values, case.mask, weight, KEEP)
    assert torch.equal(without.index, given.index)
    with pytest.raises(ValueError, match="importance"):
        RKV()(case.keys, case.values, case.mask, None, KEEP)


def test_rkv_original_spares_the_newest_of_alike_keys() -> None:
    """Of three equal keys the last is the only one each other row forgives, so it alone outlives the others."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[None, None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    flat = torch.full((1, 1, 4), 0.25, dtype=torch.float64)
    out = RKVOriginal()(keys, keys, mask, flat, 2)
    assert out.index.tolist() == [[[2, 3]]]


POSITIONAL: dict[str, tuple[Callable[[], object], Callable[[Case], list]]] = {
    "crop-last": (Crop, lambda case: slow.crop(lists(case.mask), KEEP, "last")),
    "crop-first": (lambda: Crop(side="first"), lambda case: slow.crop(lists(case.mask), KEEP, "first")),
    "uniform": (Uniform, lambda case: slow.uniform(lists(case.mask), KEEP)),
    "steps": (Steps, lambda case: slow.steps(lists(case.mask), lists(case.samples.result), KEEP)),
}


@everywhere
@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_choice(name: str, heads: str, pads: str) -> None:
    make, oracle = POSITIONAL[name]
    for case in cases(heads, pads):
        out = compress(make(), case)
        assert columns(out, case.keys.shape[1]) == same_for_heads(oracle(case), case)


@pytest.mark.parametrize("keep", [1, 2, 5, 24])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 23, 24, 25, 49, 100])
def test_uniform_and_full_at_many_lengths(length: int, keep: int) -> None:
    keys = torch.arange(length, dtype=torch.float64)[None, None, :, None].expand(1, 1, length, 2)
    mask = torch.ones(1, length, dtype=torch.bool)
    assert columns(Uniform()(keys, keys, mask, None, keep), 1) == [slow.uniform(mask.tolist(), keep)]
    _, places = slow.full(keys.tolist(), mask.tolist(), keep)
    out = Full()(keys, keys, mask, None, keep)
    close(out.keys[0, 0, : len(places[0]), 0], places[0], 1e-9)  # a ramp in, the place in time out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*POSITIONAL, "full"])
def test_half_precision_does_not_blur_positions(name: str, dtype: torch.dtype) -> None:
    """bfloat16 counts exactly up to 256 only, float16 up to 2048: a position must never be held in the keys' dtype."""
    length = 3000
    keys = torch.ones(1, 1, length, 2, dtype=dtype)
    result = (torch.arange(length) > 2100)[None]
    mask = torch.ones(1, length, dtype=torch.bool)
    case = Case(keys, keys, keys, mask, mask[:, :1], Samples(torch.tensor([1]), result), (length,), (0,))
    out = compress((POSITIONAL[name][0] if name != "full" else Full)(), case)
    if name == "full":
        places = slow.full([[[[0.0]] * length]], mask.tolist(), KEEP)[1]
        assert columns(out, 1) == [[[round(u) for u in places[0]]]]
    else:
        assert columns(out, 1) == [POSITIONAL[name][1](case)]


# full


@precisions
@everywhere
def test_full(heads: str, pads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, pads, dtype):
        out = compress(Full(), case)
        mask = lists(case.mask)
        for entries, made in ((case.keys, out.keys), (case.values, out.values)):
            expected, places = slow.full(lists(entries), mask, KEEP)
            for b, place in enumerate(places):
                assert out.kept[b].sum(-1).tolist() == [len(place)] * case.keys.shape[1]
                for h in range(case.keys.shape[1]):
                    close(made[b, h, : len(place)], expected[b][h], TOLERANCE[dtype])
                    nearest = [case.first[b] + u for u in place]
                    off = [abs(i - u) for i, u in zip(out.index[b, h].tolist(), nearest, strict=False)]
                    assert all(distance <= 0.5 + 1e-9 for distance in off)


# random


def draws(ids: Tensor, length: int, keep: int, seed: int = 0, epoch: int = 0) -> Tensor:
    """[B, keep] the columns that `random` keeps of `length`."""
    keys = torch.zeros(len(ids), 1, length, 1)
    mask = torch.ones(len(ids), length, dtype=torch.bool)
    return Random()(keys, keys, mask, None, keep, samples=Samples(ids, mask, seed, epoch)).index[:, 0]


def test_random_is_even_over_examples() -> None:
    """Every entry is kept equally often, and neighbouring ids, epochs and seeds share no more than chance gives."""
    ids, length, keep = torch.arange(3000), 10, 3
    drawn = draws(ids, length, keep)
    often = torch.bincount(drawn.flatten(), minlength=length).double() / len(ids)
    spread = (0.3 * 0.7 / len(ids)) ** 0.5
    assert (often - keep / length).abs().max() < 5 * spread
    chosen = torch.zeros(len(ids), length).scatter(1, drawn, 1.0)
    others = {
        "next id": chosen.roll(1, 0),
        "next epoch": torch.zeros(len(ids), length).scatter(1, draws(ids, length, keep, epoch=1), 1.0),
        "next seed": torch.zeros(len(ids), length).scatter(1, draws(ids, length, keep, seed=1), 1.0),
    }
    for name, other in others.items():
        overlap = (chosen * other).sum(1).mean().item()  # hypergeometric: mean 0.9, variance 0.49
        assert abs(overlap - 0.9) < 5 * (0.49 / len(ids)) ** 0.5, name


def test_random_takes_ids_of_63_bits() -> None:
    ids = torch.tensor([2**63 - 1, 2**62, 0])
    assert draws(ids, 9, 3).shape == (3, 3)


def test_random_depends_on_seed_epoch_and_id_only() -> None:
    """Not on the numbers in the cache, the head, the place in the batch or torch's own state, which stays as it was."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    ids = torch.tensor([5, 6, 7, 8])
    first = draws(ids, 12, 4, SEED, EPOCH)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draws(ids.flip(0), 12, 4, SEED, EPOCH).flip(0), first)
    case = make_case("mha", "left", (12, 12), ids=(5, 6))
    out = compress(Random(), case)
    for b in range(2):
        for h in range(4):
            assert (out.index[b, h] - case.first[b]).tolist() == first[b].tolist()
    for other in ({"seed": SEED + 1, "epoch": EPOCH}, {"seed": SEED, "epoch": EPOCH + 1}):
        assert not torch.equal(draws(ids, 12, 4, **other), first)


# shuffles


def permutation(inner: Compressed, out: Compressed, b: int, h: int) -> list[int]:
    """Slot j of `out` holds what slot p[j] of `inner` holds."""
    before = inner.index[b, h][inner.kept[b, h]].tolist()
    return [before.index(n) for n in out.index[b, h][out.kept[b, h]].tolist()]


@everywhere
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "full"])
def test_shuffle_time(name: str, heads: str, pads: str) -> None:
    """One permutation per sample, not the identity, for all heads, keys and values; index says which."""
    for case in cases(heads, pads):
        inner = compress(PLAIN[name](), case)
        out = compress(ShuffleTime(inner=PLAIN[name]()), case)
        assert torch.equal(out.kept, inner.kept)
        for b in range(len(case.lengths)):
            orders = {tuple(permutation(inner, out, b, h)) for h in range(case.keys.shape[1])}
            assert len(orders) == 1
            order = orders.pop()
            assert sorted(order) == list(range(len(order)))
            assert len(order) < 2 or list(order) != sorted(order)
            for h in range(case.keys.shape[1]):
                for slot, n in enumerate(out.index[b, h].tolist()):
                    if out.kept[b, h, slot]:
                        assert out.keys[b, h, slot].tolist() == case.keys[b, h, n].tolist()
                        assert out.values[b, h, slot].tolist() == case.values[b, h, n].tolist()


def test_shuffle_time_of_full_moves_what_was_made() -> None:
    case = make_case("gqa", "left", LENGTHS["mixed"])
    inner, out = compress(Full(), case), compress(ShuffleTime(inner=Full()), case)
    rows = case.samples.example_id.tolist()
    for b in range(len(rows)):
        for slot in range(int(inner.kept[b, 0].sum())):
            key, value = out.keys[b, 0, slot], out.values[b, 0, slot]
            at = [j for j in range(KEEP) if torch.equal(inner.keys[b, 0, j], key)]
            assert len(at) == 1
            assert torch.equal(inner.values[b, 0, at[0]], value)
            assert torch.equal(inner.keys[b, 1, at[0]], out.keys[b, 1, slot])


def test_shuffle_time_is_the_same_in_every_layer_and_even_over_examples() -> None:
    """Three entries: the five permutations but the identity are equally likely. Layers differ in numbers only."""
    ids = torch.arange(2000)
    mask = torch.ones(len(ids), 3, dtype=torch.bool)
    layers = [torch.randn(len(ids), 1, 3, 2, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    samples = Samples(ids, mask, SEED, EPOCH)
    shuffled = [ShuffleTime(inner=Crop())(keys, keys, mask, None, 3, samples=samples).index[:, 0] for keys in layers]
    assert torch.equal(*shuffled)
    seen = [tuple(order) for order in shuffled[0].tolist()]
    assert (0, 1, 2) not in seen
    for order in set(itertools.permutations(range(3))) - {(0, 1, 2)}:
        assert abs(seen.count(order) / len(ids) - 0.2) < 5 * (0.2 * 0.8 / len(ids)) ** 0.5
    again = ShuffleTime(inner=Crop())(layers[0], layers[0], mask, None, 3, samples=Samples(ids, mask, SEED, EPOCH + 1))
    assert not torch.equal(again.index[:, 0], shuffled[0])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("name", PLAIN)
def test_shuffle_examples(name: str, heads: str, pads: str) -> None:
    """Every sample gets another one's whole result, each result is used once, and the count follows it."""
    case = make_case(heads, pads, LENGTHS["mixed"])
    plain, wrapper = PLAIN[name](), ShuffleExamples(inner=PLAIN[name]())
    inner, out = compress(plain, case), compress(wrapper, case)
    partners = []
    for b in range(len(case.lengths)):
        same = [
            p
            for p in range(len(case.lengths))
            if torch.equal(out.keys[b], inner.keys[p])
            and torch.equal(out.values[b], inner.values[p])
            and torch.equal(out.kept[b], inner.kept[p])
            and torch.equal(out.index[b], inner.index[p])
        ]
        assert b not in same
        partners += same
    assert sorted(partners) == list(range(len(case.lengths)))
    assert wrapper.count(case.mask, KEEP, case.samples).tolist() == out.kept[:, 0].sum(-1).tolist()
    assert wrapper.crosses_samples


def test_shuffle_examples_refuses_a_batch_of_one() -> None:
    with pytest.raises(ValueError, match="two"):
        compress(ShuffleExamples(inner=Crop()), make_case("mha", "left", (9,)))
