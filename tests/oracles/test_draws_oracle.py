"""What is drawn: even, from (seed, epoch, example id) only; shuffles move whole entries and keep the books."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kava.compress import Compressed, Samples
from kava.compress.crop import Crop
from kava.compress.full import Full
from kava.compress.random_ import Random
from kava.compress.shuffle import ShuffleExamples, ShuffleTime
from matrix import EPOCH, HEADS, KEEP, LENGTHS, PLAIN, SEED, cases, compress, make_case

everywhere = pytest.mark.parametrize("heads", HEADS)

# random


def draws(ids: Tensor, length: int, keep: int, seed: int = 0, epoch: int = 0) -> Tensor:
    """[B, keep] the columns that `random` keeps of `length`."""
    keys = torch.zeros(len(ids), 1, length, 1)
    mask = torch.ones(len(ids), length, dtype=torch.bool)
    return Random()(keys, keys, mask, None, keep, samples=Samples(ids, mask, seed, epoch)).index[:, 0]


def test_random_is_even_over_examples() -> None:
    """Every entry is kept equally often, and neighbouring ids, epochs and seeds share no more than chance gives."""
    ids, length, keep = torch.arange(1000), 10, 3
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
def test_shuffle_time(name: str, heads: str) -> None:
    """One permutation per sample, not the identity, for all heads, keys and values; index says which."""
    for case in cases(heads):
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
    ids = torch.arange(1000)
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


@pytest.mark.parametrize("name", PLAIN)
@everywhere
def test_shuffle_examples(name: str, heads: str) -> None:
    """Every sample gets another one's whole result, each result is used once, and the count follows it."""
    case = make_case(heads, "left", LENGTHS["mixed"])
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
