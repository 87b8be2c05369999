"""Joining the parts of a row: no gaps, nothing lost, and every token is found again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from explicit import teacher
from kava.backbone.joined import PARTS, at, join_rows
from kava.backbone.teacher_forced import teacher_forced_pass

LENGTHS = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 3))
SIDES = pytest.mark.parametrize("side", ["right", "left"])


@given(st.lists(LENGTHS, min_size=1, max_size=4), st.sampled_from(["right", "left"]))
def test_rows_are_the_texts_without_gaps(lengths: list[tuple[int, int, int]], side: str) -> None:
    batch = zoo.batch(tuple(lengths), side)
    rows = join_rows(batch)
    texts = [
        [token for part in PARTS for token in batch[part][row][batch[f"{part}_mask"][row]].tolist()]
        for row in range(len(lengths))
    ]
    assert [ids[mask].tolist() for ids, mask in zip(rows.ids, rows.mask, strict=True)] == texts
    assert rows.length == max(map(len, texts))
    assert not (rows.mask[:, 1:] & ~rows.mask[:, :-1]).any(), "padding stands before a token"
    for part in PARTS:
        found = at(rows.ids[:, None, :, None], rows.columns[part])[:, 0, :, 0]
        assert torch.equal(found[batch[f"{part}_mask"]], batch[part][batch[f"{part}_mask"]])
    after = rows.after(batch["question_mask"].sum(1))
    assert [int(row.sum()) for row in after] == [cot + answer + 4 for _, cot, answer in lengths]


@SIDES
def test_what_a_pass_says_of_a_part_is_what_each_row_alone_says(side: str) -> None:
    model, batch = teacher("llama-gqa").model, zoo.batch(((5, 7, 2), (3, 2, 1), (6, 0, 3)), side)
    text = teacher_forced_pass(model, batch, all_layers=True)
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        alone = teacher_forced_pass(model, one, all_layers=True)
        for part in PARTS:
            real = batch[f"{part}_mask"][row]
            for what in ("keys", "values", "queries"):
                pairs = zip(getattr(text, what)(part), getattr(alone, what)(part), strict=True)
                for whole, single in pairs:
                    torch.testing.assert_close(whole[row][:, real], single[0][:, real], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(text.hidden(part)[row][real], alone.hidden(part)[0][real], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(text.cue(batch)[row], alone.cue(one)[0], rtol=1e-9, atol=1e-9)
