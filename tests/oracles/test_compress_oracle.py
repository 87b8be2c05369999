"""Every score and every choice against plain loops, over heads x pads x N_C."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import oracle_compress as slow
import pytest
import torch
from torch import Tensor

from kava.compress import Compressed, Samples, importance, redundancy
from kava.compress.crop import Crop
from kava.compress.full import Full
from kava.compress.rkv import RKV
from kava.compress.rkv_original import RKVOriginal
from kava.compress.steps import Steps
from kava.compress.uniform import Uniform
from matrix import HEADS, KEEP, LENGTHS, TOLERANCE, Case, cases, compress, make_case

everywhere = pytest.mark.parametrize("heads", HEADS)
precisions = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def lists(tensor: Tensor) -> list:
    return tensor.double().tolist() if tensor.is_floating_point() else tensor.tolist()


@cache
def slow_importance(case: Case) -> list:
    return slow.importance(lists(case.queries), lists(case.keys), lists(case.answer_mask), lists(case.mask), case.scale)


def close(actual: Tensor, expected: list, tolerance: float) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual.double(), wanted, rtol=tolerance / 10, atol=tolerance)


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
def test_importance(heads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, dtype):
        close(case.importance(), slow_importance(case), TOLERANCE[dtype])


@everywhere
def test_importance_sums_to_one(heads: str) -> None:
    for case in cases(heads):
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
def test_redundancy(heads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, dtype):
        keys, mask = lists(case.keys), lists(case.mask)
        close(redundancy(case.keys, case.mask), slow.redundancy(keys, mask), TOLERANCE[dtype])
        close(redundancy(case.keys, case.mask, True), slow.redundancy(slow.centred(keys, mask), mask), TOLERANCE[dtype])


def test_redundancy_is_high_for_the_entry_unlike_the_others() -> None:
    keys = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-0.2, 1.0]], dtype=torch.float64)[None, None]
    assert redundancy(keys, torch.ones(1, 4, dtype=torch.bool)).argmax() == 3


def test_a_constant_of_keys_hides_what_is_unlike_the_others_unless_they_are_centred() -> None:
    """Five keys alike and one unlike them, around a constant of the size that pretrained models have, in float32."""
    keys = torch.tensor([[3.0, 0.0]] * 3 + [[-3.0, 0.5]] + [[3.0, 0.0]] * 2)[None, None]
    keys = torch.cat([keys, torch.full((1, 1, 6, 2), 600.0)], -1)
    mask = torch.ones(1, 6, dtype=torch.bool)
    raw, centred = redundancy(keys, mask)[0, 0], redundancy(keys, mask, centred=True)[0, 0]
    assert raw.max() - raw.min() < 1e-4
    assert centred.argmax() == 3
    assert centred[3] > 2 * centred[0]
    torch.testing.assert_close(redundancy(keys[..., :2], mask, centred=True)[0, 0], centred, rtol=1e-3, atol=1e-4)


# scores and what they keep


def of_centred(oracle: Callable[..., list]) -> Callable[..., list]:
    return lambda keys, mask, *rest: oracle(slow.centred(keys, mask), mask, *rest)


SCORED = {
    "rkv-centred": (RKV(centred=True), of_centred(slow.rkv), 0.1),
    "rkv_original-centred": (RKVOriginal(0.5, centred=True), of_centred(slow.rkv_original), 0.5),
    "rkv": (RKV(), slow.rkv, 0.1),  # the defaults are the paper's and R-KV's
    "rkv_original": (RKVOriginal(), slow.rkv_original, 0.07),
    **{f"rkv-{x}": (RKV(lambda_=x), slow.rkv, x) for x in (0.0, 1.0)},
    **{f"rkv_original-{x}": (RKVOriginal(lambda_=x), slow.rkv_original, x) for x in (0.0, 0.5, 1.0)},
}


@precisions
@everywhere
@pytest.mark.parametrize("name", SCORED)
def test_score(name: str, heads: str, dtype: torch.dtype) -> None:
    compressor, oracle, lambda_ = SCORED[name]
    for case in cases(heads, dtype):
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
def test_positional_choice(name: str, heads: str) -> None:
    make, oracle = POSITIONAL[name]
    for case in cases(heads):
        out = compress(make(), case)
        assert columns(out, case.keys.shape[1]) == same_for_heads(oracle(case), case)


@pytest.mark.parametrize("keep", [1, 2, 5, 24])
def test_uniform_and_full_at_many_lengths(keep: int) -> None:
    for length in (1, 2, 5, 6, 7, 23, 24, 25, 49, 100):
        _uniform_and_full(length, keep)


def _uniform_and_full(length: int, keep: int) -> None:
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
    result = (torch.arange(length) > 2110)[None]
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
def test_full(heads: str, dtype: torch.dtype) -> None:
    for case in cases(heads, dtype):
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
