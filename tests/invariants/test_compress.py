"""What holds for every compressor, also for one that was entered in the table a minute ago."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kava.compress import COMPRESSORS, Compressed, Compressor, make_compressor
from kava.compress.base import Cot
from kava.compress.shuffle import ShuffleTime
from kava.errors import ConfigError
from matrix import (
    HEADS,
    KEEP,
    LENGTHS,
    PADS,
    SHUFFLED_EXAMPLES,
    TOLERANCE,
    VARIANTS,
    Case,
    alone,
    cases,
    compress,
    make_case,
)

everywhere = pytest.mark.parametrize(("name", "heads"), list(itertools.product(VARIANTS, HEADS)))


def chooses(compressor: Compressor) -> bool:
    """Whether entries are chosen (then each equals an entry of the input) rather than made."""
    inner = getattr(compressor, "inner", compressor)
    return type(inner).compress is Compressor.compress


def same(left: Tensor, right: Tensor, tolerance: float) -> None:
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    if left.dtype.is_floating_point:
        assert bool(((left - right).abs() <= tolerance).all())
    else:
        assert torch.equal(left, right)


def assert_well_formed(compressor: Compressor, case: Case, out: Compressed, keep: int) -> None:
    batch, heads, _, width = case.keys.shape
    assert out.keys.shape == out.values.shape == (batch, heads, keep, width)
    assert out.kept.shape == out.index.shape == (batch, heads, keep)
    assert out.kept.dtype == torch.bool
    assert out.keys.dtype == case.keys.dtype
    assert out.values.dtype == case.values.dtype
    assert not out.keys.isnan().any()
    assert not out.values.isnan().any()
    assert (out.index[~out.kept] == 0).all()
    assert (out.keys[~out.kept] == 0).all()
    assert (out.values[~out.kept] == 0).all()
    eligible = compressor.eligible(case.mask, case.samples).sum(1).clamp(max=keep)
    count = compressor.count(case.mask, keep, case.samples)
    assert count.tolist() == eligible.tolist()
    left_aligned = torch.arange(keep) < count[:, None]
    assert torch.equal(out.kept, left_aligned[:, None].expand_as(out.kept))


def assert_entries_come_from_the_index(compressor: Compressor, case: Case, out: Compressed) -> None:
    allowed = compressor.eligible(case.mask, case.samples).tolist()
    kept, index = out.kept.tolist(), out.index.tolist()
    for b, h in itertools.product(range(len(kept)), range(len(kept[0]))):
        columns = [n for n, real in zip(index[b][h], kept[b][h], strict=True) if real]
        assert all(allowed[b][n] for n in columns)
        if chooses(compressor):
            assert len(set(columns)) == len(columns)
            assert torch.equal(out.keys[b, h, : len(columns)], case.keys[b, h, columns])
            assert torch.equal(out.values[b, h, : len(columns)], case.values[b, h, columns])
        if not isinstance(compressor, ShuffleTime):
            assert columns == sorted(columns)


@everywhere
def test_contract(name: str, heads: str) -> None:
    """Counts, shapes, empty slots, origin and time order of what is kept; no padding; the input left alone."""
    compressor = VARIANTS[name]()
    for case in cases(heads):
        before = case.keys.clone(), case.values.clone()
        out = compress(compressor, case)
        assert torch.equal(before[0], case.keys)
        assert torch.equal(before[1], case.values)
        assert_well_formed(compressor, case, out, KEEP)
        assert_entries_come_from_the_index(compressor, case, out)


@everywhere
def test_neither_padding_nor_the_batch_matters(name: str, heads: str) -> None:
    """A padded batch of n = n batches of one without padding, the index counted from the first real entry."""
    compressor = VARIANTS[name]()
    assert not compressor.crosses_samples
    singles: dict[tuple[int, int, torch.dtype], Compressed] = {}
    for case in [*cases(heads), *(make_case(heads, pads, LENGTHS["mixed"], torch.float32) for pads in PADS)]:
        out = compress(compressor, case)
        for row, first in enumerate(case.first):
            which = (int(case.samples.example_id[row]), case.lengths[row], case.keys.dtype)
            if which not in singles:
                singles[which] = compress(compressor, alone(case, row, heads))
            single = singles[which]
            assert torch.equal(single.kept[0], out.kept[row])
            assert torch.equal(single.index[0][single.kept[0]], out.index[row][out.kept[row]] - first)
            same(single.keys[0], out.keys[row], TOLERANCE[case.keys.dtype])
            same(single.values[0], out.values[row], TOLERANCE[case.keys.dtype])


@pytest.mark.parametrize("name", VARIANTS)
def test_any_budget(name: str) -> None:
    """Nothing, one, or far more than there is."""
    compressor = VARIANTS[name]()
    for pads, keep in itertools.product(PADS, (0, 1, 3, 40)):
        case = make_case("gqa", pads, LENGTHS["mixed"])
        out = compress(compressor, case, keep)
        assert_well_formed(compressor, case, out, keep)
        assert_entries_come_from_the_index(compressor, case, out)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_without_any_chain_of_thought(name: str) -> None:
    """N = 0 columns, not only N_C = 0."""
    case = make_case("gqa", "left", (0, 0), extra=0)
    assert case.keys.shape[2] == 0
    assert_well_formed(VARIANTS[name](), case, compress(VARIANTS[name](), case), KEEP)


@pytest.mark.parametrize("name", {**VARIANTS, **SHUFFLED_EXAMPLES})
def test_what_padding_holds_does_not_matter(name: str) -> None:
    """A fully masked attention row may be NaN: not one bit of the result may come from there."""
    compressor = {**VARIANTS, **SHUFFLED_EXAMPLES}[name]()
    for pads, garbage in itertools.product(PADS, (1e30, float("inf"), float("nan"))):
        clean = compress(compressor, make_case("gqa", pads, LENGTHS["mixed"], torch.float32))
        dirty = compress(compressor, make_case("gqa", pads, LENGTHS["mixed"], torch.float32, garbage=garbage))
        for left, right in zip(vars(clean).values(), vars(dirty).values(), strict=True):
            same(left, right, 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_in_half_precision_out(name: str) -> None:
    compressor = VARIANTS[name]()
    for dtype in (torch.bfloat16, torch.float16):
        case = make_case("gqa", "left", LENGTHS["mixed"], dtype)
        out = compress(compressor, case)
        assert_well_formed(compressor, case, out, KEEP)
        assert_entries_come_from_the_index(compressor, case, out)


@dataclass(frozen=True)
class Flat(Compressor):
    """All entries alike: what a tie is decided by."""

    def score(self, cot: Cot) -> Tensor:
        return cot.keys.new_zeros(cot.keys.shape[:3])


@pytest.mark.parametrize("length", [9, 60])
def test_ties_do_not_depend_on_padding(length: int) -> None:
    """Exact ties are real: a repeated token's key before rotary in layer 0, a pooled importance in rkv_original."""
    chosen = []
    for pads, extra in itertools.product(PADS, (0, 1, 2, 40, 300)):
        case = make_case("gqa", pads, (length, 3), extra=extra)
        chosen.append((compress(Flat(), case).index[0] - case.first[0]).tolist())
    assert all(index == chosen[0] for index in chosen)


# the table


def test_every_name_of_the_table_is_made_and_wrapped() -> None:
    for name in COMPRESSORS:
        assert type(make_compressor(name)) is COMPRESSORS[name]
        assert isinstance(make_compressor(name, "time"), ShuffleTime)
        assert make_compressor(name, "examples").crosses_samples


def test_settings_reach_the_compressor_that_has_a_field_for_them() -> None:
    assert make_compressor("rkv", lambda_=0.4, side="first") == COMPRESSORS["rkv"](lambda_=0.4)
    assert make_compressor("crop", "time", lambda_=0.4, side="first").inner == COMPRESSORS["crop"](side="first")


def test_a_variant_from_outside_needs_no_edit_of_ours() -> None:
    assert type(make_compressor("kava.compress.crop:Crop")) is COMPRESSORS["crop"]
    with pytest.raises(ConfigError, match="nothing_here"):
        make_compressor("nothing_here")


def test_an_unknown_side_is_refused() -> None:
    """A misspelt side must not quietly mean the other one."""
    with pytest.raises((ConfigError, ValueError)):
        compress(make_compressor("crop", side="frist"), make_case("mha", "left", (9,)))
