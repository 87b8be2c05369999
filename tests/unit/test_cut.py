"""Pieces of a batch: each is what the collator would have made of its rows alone, and none holds more than the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from kava.compress import make_compressor
from kava.compress.crop import Crop
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.data.cut import cut, row_lengths, take
from kava.data.encode import Encoded, EncodedSet
from kava.errors import ConfigError, KavaError
from kava.training import memory
from kava.training.memory import AUTO, IDLE, OTHERWISE, check_budget, pieces_of, token_budget

CPU = torch.device("cpu")
ROW = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 3))
SIDES = st.sampled_from(["right", "left"])


def encoded(number: int, lengths: tuple[int, int, int]) -> Encoded:
    question, cot, answer = ([10 * (part + 1) + i for i in range(size)] for part, size in enumerate(lengths))
    return Encoded(f"row{number}", question, cot, [i % 2 == 0 for i in range(len(cot))], [51, 52], answer, 1)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@given(st.lists(ROW, min_size=1, max_size=6), st.integers(1, 90), SIDES)
def test_pieces_are_the_rows_collated_alone(lengths: list[tuple[int, int, int]], budget: int, side: str) -> None:
    rows = {row.id: row for row in (encoded(*pair) for pair in enumerate(lengths))}
    collate = Collator(0, side)
    batch = collate(list(rows.values()))
    names = dict(zip(batch["example_id"].tolist(), rows, strict=True))
    pieces, found = cut(batch, budget), []
    for piece in pieces:
        members = [names[number] for number in piece["example_id"].tolist()]
        assert same(piece, collate([rows[name] for name in members]))
        tokens = row_lengths(piece)
        assert tokens == [len(rows[name]) for name in members]
        assert len(tokens) == 1 or len(tokens) * max(tokens) <= budget
        found += members
    assert sorted(found) == sorted(rows), "every row once"
    if len(pieces) > 1:
        assert [len(rows[name]) for name in found] == sorted(map(len, rows.values()), reverse=True)
    else:
        assert pieces[0] is batch


def test_a_batch_that_fits_or_has_no_budget_is_left_as_it_is() -> None:
    batch = zoo.batch()
    assert cut(batch, None)[0] is batch
    assert cut(batch, 3 * max(row_lengths(batch)))[0] is batch
    assert len(cut(batch, 3 * max(row_lengths(batch)) - 1)) > 1


def test_a_mixture_is_cut_with_every_teachers_tokens() -> None:
    import mixtures

    lengths = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 9, 1))
    for side in ("right", "left"):
        batch = mixtures.batch(mixtures.THREE, lengths, side)
        piece = take(batch, [2, 1])
        assert piece.keys() == batch.keys()
        for prefix in ("", "t0.", "t1.", "t2."):
            for part in ("question", "cot", "tail"):
                mask = piece[f"{prefix}{part}_mask"]
                assert mask.shape[1] == int(mask.sum(1).max())
                for new, row in enumerate((2, 1)):
                    old = batch[f"{prefix}{part}"][row][batch[f"{prefix}{part}_mask"][row]]
                    assert torch.equal(piece[prefix + part][new][mask[new]], old)
            at = piece[f"{prefix}tail"].gather(1, piece[f"{prefix}cue_last"][:, None])
            assert torch.equal(at, batch[f"{prefix}tail"][[2, 1]].gather(1, batch[f"{prefix}cue_last"][[2, 1], None]))
        for number in range(3):
            for new, row in enumerate((2, 1)):
                of_batch = batch[f"t{number}.iou"][row][batch["cot_mask"][row]][:, batch[f"t{number}.cot_mask"][row]]
                own = piece[f"t{number}.iou"][new][piece["cot_mask"][new]][:, piece[f"t{number}.cot_mask"][new]]
                assert torch.equal(own, of_batch)


# -- the setting -----------------------------------------------------------------------------------------------------


def test_the_budget_is_that_of_the_recipe_and_the_device() -> None:
    def budget(*settings: str, device: str = "cpu") -> int | None:
        return token_budget(load_recipe("debug", list(settings)), torch.device(device))

    assert (budget(), budget(device="cuda")) == (AUTO["cpu"], OTHERWISE)
    assert (budget("training.tokens_per_piece=77"), budget("training.tokens_per_piece=none")) == (77, None)
    assert budget("rkv.shuffle=examples") is budget("loss.std_scope=batch") is None


class OfAnotherSample(Crop):
    """A compressor of a user's whose choice depends on which samples share the batch."""

    crosses_samples = True


def test_batches_stay_whole_for_a_compressor_that_crosses_samples() -> None:
    method = "test_cut:OfAnotherSample"
    for shuffle in ("none", "time"):
        recipe = load_recipe(
            "debug", [f"rkv.method={method}", f"rkv.shuffle={shuffle}", "training.on_oom=reduce_batch"]
        )
        assert token_budget(recipe, CPU) is None
        assert pieces_of(recipe, 1, CPU).why_not == f"rkv.method={method} needs its batches whole"
        assert make_compressor(method, shuffle).crosses_samples


def test_processes_with_shards_have_as_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has less than another is its last piece again, which does not count."""
    monkeypatch.setattr(memory, "max_over_processes", lambda count: count + 2)
    batch = zoo.batch()
    for sharding, more in (("none", 0), ("fsdp2", 2), ("fsdp2_whole", 2)):
        recipe = load_recipe("debug", [f"system.sharding={sharding}", "training.tokens_per_piece=20"])
        alone, together = pieces_of(recipe, 1, CPU), pieces_of(recipe, 2, CPU)
        for pieces in (alone, together):
            pieces.begin([batch])
        assert [IDLE in piece for piece in together.of(batch)] == [False] * len(alone.of(batch)) + [True] * more
        for piece in together.of(batch)[-more:] if more else ():
            assert same({name: value for name, value in piece.items() if name != IDLE}, alone.of(batch)[-1])


@pytest.mark.parametrize("value", ["0", "-3", "some", "1.5", "[]"])
def test_what_is_no_budget_is_refused(value: str) -> None:
    with pytest.raises(KavaError, match="tokens_per_piece"):
        load_recipe("debug", [f"training.tokens_per_piece={value}"])


def test_a_budget_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="batches stay whole"):
        load_recipe("debug", ["training.tokens_per_piece=500", "rkv.shuffle=examples"])


def test_a_budget_below_the_longest_example_is_one_clear_line() -> None:
    rows = EncodedSet([51, 52], 1)
    for row in (encoded(0, (5, 7, 2)), encoded(1, (9, 2, 1))):
        rows.append(row)
    longest = max(map(len, rows))
    check_budget(load_recipe("debug", [f"training.tokens_per_piece={longest}"]), rows)
    check_budget(load_recipe("debug"), rows)
    recipe = load_recipe("debug", [f"training.tokens_per_piece={longest - 1}"])
    with pytest.raises(ConfigError, match=f"is {longest - 1}, but the longest training example has {longest} tokens"):
        check_budget(recipe, rows)
    check_budget(recipe, iter(rows))  # nothing is known of a stream: a longer row is a piece of its own
