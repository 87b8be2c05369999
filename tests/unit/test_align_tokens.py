"""Tokens of one text in two tokenizers: which belong together, and what carries over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import many
from kava.align.length import (
    align_sequence_lengths,
    apply_mask_to_kv,
    apply_soft_alignment,
    create_attention_mask,
    pad_to_length,
    truncate,
)
from kava.align.tokens import (
    build_char_align_matrix,
    char_spans,
    coverage,
    iou_matrix,
    matched,
    spans_of,
    spread,
    token_by_token,
)
from kava.errors import ConfigError, ModelError

CHINESE = "\u5979\u6709 9 \u4e2a\u9e21\u86cb"


@pytest.mark.parametrize("tokenizer", [many.digits, many.joined, many.unigram, many.wordpiece])
def test_the_same_tokenizer_gives_the_identity(tokenizer) -> None:
    text = f"She has 16 - 3 = 13 eggs. {CHINESE}"
    found = build_char_align_matrix(text, tokenizer(), tokenizer())
    real = [i for i, (start, end) in enumerate(spans_of(text, tokenizer())) if end > start]
    assert torch.equal(found[real][:, real], torch.eye(len(real)))


def test_one_number_against_its_digits() -> None:
    iou = iou_matrix([(0, 1), (1, 2), (2, 3)], [(0, 3)])
    assert torch.allclose(iou, torch.full((3, 1), 1 / 3))
    assert torch.equal(
        build_char_align_matrix("123", _tokens([(0, 3)]), _tokens([(0, 1), (1, 2), (2, 3)])), torch.ones(3, 1)
    )


def test_below_the_threshold_is_no_match() -> None:
    spans = [(float(j), float(j + 1)) for j in range(12)]
    word = [(0.0, 12.0)]
    assert not matched(iou_matrix(spans, word, 0.1)).any()  # 1/12
    assert matched(iou_matrix(spans, word, 1 / 12)).all()  # at the threshold is not below it
    assert matched(iou_matrix(spans[:10], [(0.0, 10.0)], 0.1)).all()


def test_spaces_belong_to_the_token_behind_them() -> None:
    """Offsets with and without the space in front are the same token."""
    text = "the  cat "
    bare = char_spans(text, [(0, 3), (5, 8)])
    assert bare == [(0.0, 3.0), (3.0, 8.0)]
    assert torch.equal(iou_matrix(bare, char_spans(text, [(0, 3), (3, 8)])), torch.eye(2))


def test_marks_and_special_tokens_cover_nothing() -> None:
    text = "ab"
    spans = char_spans(text, [(0, 0), (0, 1), (0, 2)], ["<bos>", "\u2581", "\u2581ab"])
    assert spans == [(0.0, 0.0), (0.0, 0.0), (0.0, 2.0)]
    assert char_spans("\u2581b", [(0, 1), (1, 2)], ["\u2581", "b"])[0] == (0.0, 1.0)  # the character itself
    assert not matched(iou_matrix([(0.0, 0.0)], spans)).any()


def test_a_byte_level_token_has_its_share_of_a_character() -> None:
    letters = "\u00e4\u00b8"  # the first two of three bytes of U+4E2D
    spans = char_spans("\u4e2d", [(0, 1), (0, 1)], [letters, "\u0143"])
    assert spans == [(0.0, pytest.approx(2 / 3)), (pytest.approx(2 / 3), 1.0)]
    assert char_spans("\u4e2d", [(0, 1), (0, 1)]) == [(0.0, 0.5), (0.5, 1.0)]  # offsets alone do not tell


def test_every_bilingual_text_is_covered() -> None:
    for student in (many.digits, many.joined, many.unigram, many.wordpiece):
        for teacher in (many.digits, many.joined, many.unigram, many.wordpiece):
            for text in many.BILINGUAL:
                iou = iou_matrix(spans_of(text, student()), spans_of(text, teacher()))
                real = torch.tensor([end > start for start, end in spans_of(text, student())])
                assert coverage(iou, real) == 1.0


def test_coverage_counts_real_tokens() -> None:
    iou = torch.tensor([[[1.0, 0], [0, 0], [0, 0]]])
    assert coverage(iou) == pytest.approx(1 / 3)
    assert coverage(iou, torch.tensor([[True, True, False]])) == 0.5
    assert coverage(iou, torch.zeros(1, 3, dtype=torch.bool)) == 1.0


def test_spread_keeps_the_mass_of_matched_tokens() -> None:
    iou = iou_matrix([(0, 1), (1, 3), (9, 10)], [(0, 2), (2, 3), (4, 5)])
    mass = torch.tensor([5.0, 2.0, 7.0])
    assert (spread(iou) @ mass).tolist() == pytest.approx([3.0, 4.0, 0.0], abs=1e-6)


def test_both_orders_of_arguments_are_read() -> None:
    one, two = many.digits(), many.joined()
    right = build_char_align_matrix("12 apples", teacher_tok=two, student_tok=one)
    assert torch.equal(build_char_align_matrix(one, two, "12 apples"), right)
    assert right.shape == (len(spans_of("12 apples", one)), len(spans_of("12 apples", two)))
    with pytest.raises(ConfigError, match="needs a text"):
        build_char_align_matrix(one, two, two)


def test_a_slow_tokenizer_is_named() -> None:
    with pytest.raises(ModelError, match=r"old-one .*slow"):
        spans_of("a", SimpleNamespace(is_fast=False, name_or_path="old-one"))
    with pytest.raises(ModelError, match=r"offset is \(0, 5\) in a text of 2"):
        char_spans("ab", [(0, 5)])


def _tokens(offsets):
    """A tokenizer that always gives these offsets."""

    class Fixed:
        is_fast = True

        def __call__(self, text, **_):
            return {"offset_mapping": offsets, "input_ids": list(range(len(offsets)))}

        def convert_ids_to_tokens(self, ids):
            return ["?"] * len(ids)

    return Fixed()


# -- lengths ---------------------------------------------------------------------------------------------------------


def test_padding_never_cuts() -> None:
    kv = torch.arange(12.0).view(1, 2, 3, 2)
    padded, mask = pad_to_length(kv, 5)
    assert torch.equal(padded[:, :, :3], kv)
    assert not padded[:, :, 3:].any()
    assert mask.tolist() == [[True] * 3 + [False] * 2]
    with pytest.raises(ModelError, match="3 tokens do not fit into 2"):
        pad_to_length(kv, 2)
    assert torch.equal(truncate(kv, 2), kv[:, :, :2])
    assert torch.equal(truncate(kv, 9), kv)


def test_masks() -> None:
    lengths = torch.tensor([0, 2, 3])
    mask = create_attention_mask(lengths)
    assert mask.sum(1).tolist() == [0, 2, 3]
    assert create_attention_mask(lengths, 4).shape == (3, 4)
    with pytest.raises(ModelError, match="does not fit"):
        create_attention_mask(lengths, 2)
    kept = apply_mask_to_kv(torch.ones(3, 2, 3, 4), mask)
    assert torch.equal(kept.sum((1, 3)) / 8, mask.float())
    assert torch.equal(apply_mask_to_kv(torch.ones(3, 3, 2), mask, dim=1).sum(2) / 2, mask.float())


def test_soft_alignment_is_a_mean_along_one_dimension() -> None:
    weights = torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]])
    kv = torch.randn(2, 3, 3, 4)
    wanted = torch.stack([(kv[:, :, 0] + kv[:, :, 1]) / 2, kv[:, :, 2]], dim=2)
    assert torch.allclose(apply_soft_alignment(kv, weights), wanted)
    assert torch.allclose(apply_soft_alignment(kv.movedim(2, 1), weights, dim=1), wanted.movedim(2, 1))
    assert apply_soft_alignment(torch.zeros(2, 3, 0, 4), torch.zeros(2, 5, 0)).shape == (2, 3, 5, 4)


def test_both_sides_come_to_one_length() -> None:
    teacher, student = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 3, 4)
    theirs, mine, their_mask, my_mask = align_sequence_lengths(teacher, student)
    assert theirs.shape == mine.shape == (1, 2, 5, 4)
    assert (their_mask.sum(), my_mask.sum()) == (5, 3)
    weights = torch.zeros(1, 3, 5)
    weights[0, 0, 4] = weights[0, 2, 1] = 1
    theirs, mine, their_mask, my_mask = align_sequence_lengths(teacher, student, weights)
    assert torch.equal(theirs[:, :, 0], teacher[:, :, 4])
    assert torch.equal(mine, student)
    assert their_mask.tolist() == [[True, False, True]]
    assert my_mask.all()


def test_token_by_token_is_the_only_cut() -> None:
    assert token_by_token(2, 4).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert matched(token_by_token(4, 2)).tolist() == [True, True, False, False]
