"""One choice per sample against plain loops: mean score over layers and heads, then the best columns in time order."""

from __future__ import annotations

from collections.abc import Callable

import oracle_compress as slow
import pytest
import torch
from torch import Tensor

from kava.compress import Compressor, Samples, importance
from kava.compress.crop import Crop
from kava.compress.full import Full
from kava.compress.random_ import Random
from kava.compress.rkv import RKV
from kava.compress.rkv_original import RKVOriginal
from kava.compress.shuffle import ShuffleTime
from kava.compress.steps import Steps
from kava.compress.uniform import Uniform
from matrix import HEADS, KEEP, LENGTHS, PADS, Case, make_case

LAYERS = 3
LEFT_OUT = float("-inf")


def layers(heads: str, pads: str, lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Case]:
    """One case per layer: other keys and queries, the same samples."""
    first = make_case(heads, pads, lengths, dtype)
    drawn = [make_case(heads, pads, lengths, dtype, tuple(range(10 * k, 10 * k + len(lengths)))) for k in (1, 2)]
    return [first, *drawn][:LAYERS]


def choose(compressor: Compressor, read: list[Case], keep: int = KEEP) -> list[list[int]]:
    """The kept columns of each sample, without the empty slots."""
    first = read[0]
    looked = [importance(one.queries, one.keys, one.answer_mask, first.mask, one.scale) for one in read]
    index, kept = compressor.choose(
        [one.keys for one in read],
        [one.values for one in read],
        looked if compressor.needs_importance else None,
        first.mask,
        keep,
        first.samples,
    )
    assert index.shape == kept.shape == (len(first.mask), 1, keep)
    assert not index[~kept].any()
    counts = kept[:, 0].sum(1).tolist()
    assert all(kept[b, 0, :n].all() for b, n in enumerate(counts))  # left-aligned
    return [index[b, 0, :n].tolist() for b, n in enumerate(counts)]


def oracle(read: list[Case], score: Callable[[list, list, list], list], allowed: list) -> list[list[int]]:
    first = read[0]
    mask, width = first.mask.tolist(), first.mask.shape[1]
    total = [[0.0] * width for _ in mask]
    for one in read:
        keys = one.keys.tolist()
        looked = slow.importance(one.queries.tolist(), keys, one.answer_mask.tolist(), mask, one.scale)
        for b, heads in enumerate(score(keys, mask, looked)):
            for n in range(width):
                total[b][n] += sum(row[n] for row in heads) / len(heads) / len(read)
    return [rows[0] for rows in slow.best([[row] for row in total], allowed, KEEP)]


SCORED = {
    "rkv": (RKV(), lambda keys, mask, looked: slow.rkv(keys, mask, looked, 0.1)),
    "rkv-0": (RKV(lambda_=0.0), lambda keys, mask, looked: slow.rkv(keys, mask, looked, 0.0)),
    "rkv_original": (RKVOriginal(), lambda keys, mask, looked: slow.rkv_original(keys, mask, looked, 0.07)),
}


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("heads", HEADS)
def test_the_mean_score_decides(heads: str, name: str) -> None:
    compressor, score = SCORED[name]
    for pads in PADS:
        for lengths in LENGTHS.values():
            read = layers(heads, pads, lengths)
            assert choose(compressor, read) == oracle(read, score, read[0].mask.tolist())


def test_the_mean_of_all_layers_is_not_any_one_layers_choice() -> None:
    """Layer 0 likes column 0 a little, layer 1 column 2 a lot: a vote per layer or the first layer would differ."""

    def cosine_to_rest(angles: list[float]) -> Tensor:
        angle = torch.tensor(angles, dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)[None, None]

    mask = torch.ones(1, 4, dtype=torch.bool)
    keys = [cosine_to_rest([0.6, 0.0, 0.0, 0.0]), cosine_to_rest([0.0, 0.0, 3.1, 0.0])]
    alone = [RKV(lambda_=0.0).choose([one], [one], None, mask, 1)[0].item() for one in keys]
    both = RKV(lambda_=0.0).choose(keys, keys, None, mask, 1)[0].item()
    assert (alone, both) == ([0, 2], 2)
    weighted = [*keys[:1] * 40, keys[1]]
    assert RKV(lambda_=0.0).choose(weighted, weighted, None, mask, 1)[0].item() == 0


POSITIONAL: dict[str, tuple[Compressor, Callable[[Case], list]]] = {
    "crop-last": (Crop(), lambda case: slow.crop(case.mask.tolist(), KEEP, "last")),
    "crop-first": (Crop(side="first"), lambda case: slow.crop(case.mask.tolist(), KEEP, "first")),
    "uniform": (Uniform(), lambda case: slow.uniform(case.mask.tolist(), KEEP)),
    "steps": (Steps(), lambda case: slow.steps(case.mask.tolist(), case.samples.result.tolist(), KEEP)),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_positions_need_no_scores(name: str) -> None:
    compressor, wanted = POSITIONAL[name]
    for heads in HEADS:
        for pads in PADS:
            for lengths in LENGTHS.values():
                read = layers(heads, pads, lengths)
                assert choose(compressor, read) == wanted(read[0])


def test_random_keeps_what_it_keeps_of_one_layer() -> None:
    """Its draws know neither layer nor head, so one choice per sample is what every head gets anyway."""
    read = layers("gqa", "left", LENGTHS["mixed"])
    first = read[0]
    out = Random()(first.keys, first.values, first.mask, None, KEEP, samples=first.samples)
    assert choose(Random(), read) == [out.index[b, 0][out.kept[b, 0]].tolist() for b in range(len(first.mask))]


def test_neither_padding_nor_the_batch_moves_a_choice() -> None:
    lengths = LENGTHS["mixed"]
    for name in ("rkv", "rkv_original"):
        chosen = {pads: choose(SCORED[name][0], layers("gqa", pads, lengths)) for pads in PADS}
        width = make_case("gqa", "left", lengths).mask.shape[1]
        moved = [[n - (width - length) for n in row] for row, length in zip(chosen["left"], lengths, strict=True)]
        assert moved == chosen["right"]
        for b, length in enumerate(lengths):
            ids = [b + 1, 10 + b, 20 + b]
            read = [make_case("gqa", "right", (length,), ids=(i,), extra=0) for i in ids]
            assert choose(SCORED[name][0], read) == [chosen["right"][b]]


def test_layers_of_unequal_heads() -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    keys = [torch.randn(2, h, 6, d, generator=torch.Generator().manual_seed(h)) for h, d in ((1, 3), (4, 5))]
    index, kept = RKV(lambda_=0.0).choose(keys, keys, None, mask, 3)
    assert index.shape == (2, 1, 3)
    assert bool(kept.all())


def test_what_cannot_choose_is_refused() -> None:
    case = make_case("gqa", "left", LENGTHS["mixed"])
    keys = [case.keys]
    samples = Samples(case.samples.example_id, case.samples.result)
    for compressor in (Full(), ShuffleTime(inner=RKV(lambda_=0.0))):
        with pytest.raises(ValueError, match="does not choose among positions"):
            compressor.choose(keys, keys, None, case.mask, KEEP, samples)
    with pytest.raises(ValueError, match="needs the importance"):
        RKV().choose(keys, keys, None, case.mask, KEEP)
    with pytest.raises(ValueError, match="no layer"):
        Crop().choose([], [], None, case.mask, KEEP)
