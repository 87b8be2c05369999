"""Spans, overlaps and the pipeline of one teacher against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import oracle_align as slow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kava.align import Aligner, layer_map
from kava.align.heads import overlap_map
from kava.align.tokens import compute_iou, iou_matrix, matched, normalised, spans_of, spread

TEXTS = (
    "3 + 4 = 7 the cat sat on the mat. The cat runs 123 + 45.",
    "\u4e2d\u6587\u5b57\u7b26 \u6211\u4eec \u4e09\u52a0\u56db\u7b49\u4e8e\u4e03",
    "Caf\u00e9 \u00dcber \U0001f600 ok \U0001f469\u200d\U0001f4bb",
)
MARKS = ("\u2581", "\u0120")
LETTERS = st.one_of(
    st.sampled_from("the cat 123+=. \n\t"),
    st.sampled_from(
        "\u4e2d\u6587\u4e09\u00e9\u00fce\u0301\ufb01\u338f\u0120\u2581\u00a0\u3000\u200b\U0001f600\U0001f469\u200d"
    ),
    st.characters(exclude_categories=["Cs"]),
)


@dataclass(frozen=True)
class Sizes:
    num_layers: int
    num_heads: int
    head_size: int


def fast(tokenizer: Tokenizer, trainer: Any) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


SPECIAL = {"special_tokens": ["<unk>", "<pad>", "<eos>"], "show_progress": False}


def byte_level(prefix: bool, trim: bool, normal: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    if normal is not None:
        tokenizer.normalizer = normal
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return fast(tokenizer, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **SPECIAL))


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(tokenizer, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", **SPECIAL))


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: a word mark before the text, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    names = [*SPECIAL["special_tokens"], *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXTS[:1], trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=names)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return fast(tokenizer, trainers.WordPieceTrainer(vocab_size=120, **SPECIAL))


BUILD: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: byte_level(False, False),
    "bytes, space before the text": lambda: byte_level(True, False),
    "bytes, offsets without spaces": lambda: byte_level(False, True),
    "bytes of composed characters": lambda: byte_level(False, False, normalizers.NFC()),
    "unigram": unigram,
    "byte fallback": byte_fallback,
    "wordpiece": wordpiece,
}
COUNTED = ("bytes", "bytes, space before the text", "bytes, offsets without spaces")


@cache
def made(name: str) -> PreTrainedTokenizerFast:
    return BUILD[name]()


def pieces(text: str, name: str) -> list[list[slow.Piece]]:
    """What each token covers, by counting its bytes, or by its offsets."""
    found = made(name)(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = made(name).convert_ids_to_tokens(found["input_ids"])
    total = sum(len(token) for token in tokens)
    counted = name in COUNTED or (name == "bytes of composed characters" and _composed(text))
    if counted:
        return slow.by_bytes(text, [len(token) for token in tokens], total - len(text.encode()))
    marks = [
        token in MARKS and text[start:end] != token
        for token, (start, end) in zip(tokens, found["offset_mapping"], strict=True)
    ]
    return slow.by_offsets(text, found["offset_mapping"], marks)


def _composed(text: str) -> bool:
    import unicodedata

    return unicodedata.normalize("NFC", text) == text


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    text=st.text(LETTERS, max_size=16),
    student=st.sampled_from(sorted(BUILD)),
    teacher=st.sampled_from(sorted(BUILD)),
    threshold=st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 3), Fraction(1)]),
)
def test_overlaps_of_any_text(text: str, student: str, teacher: str, threshold: Fraction) -> None:
    mine, theirs = spans_of(text, made(student)), spans_of(text, made(teacher))
    wanted = slow.matrix(pieces(text, student), pieces(text, teacher), threshold)
    found = iou_matrix(mine, theirs, float(threshold))
    assert found.shape == (len(mine), len(theirs))
    expected = torch.tensor([[float(value) for value in row] for row in wanted]).view(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    for i, one in enumerate(mine):
        for j, other in enumerate(theirs):
            exact = compute_iou(one, other)
            assert abs((exact if exact >= float(threshold) - 1e-9 else 0.0) - float(wanted[i][j])) < 1e-9
    rows, columns = slow.shares_by_rows(wanted), slow.shares_by_columns(wanted)
    for actual, shares in ((normalised(found), rows), (spread(found), columns)):
        expected = torch.tensor([[float(value) for value in row] for row in shares]).view(found.shape)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert matched(found).tolist() == [any(row) for row in wanted]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2), (2, 12), (3, 5), (5, 3), (4, 2), (2, 4), (3, 3), (1, 4), (4, 1)])
def test_groups(sizes: tuple[int, int]) -> None:
    wanted = [[float(value) for value in row] for row in slow.groups(*sizes)]
    torch.testing.assert_close(overlap_map(*sizes), torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        ((3, 2, 4), (2, 2, 4)),  # teacher and student: layers, heads, head size
        ((5, 3, 6), (3, 2, 4)),
        ((2, 2, 4), (4, 3, 6)),  # fewer teacher layers than the student's: tokens first
        ((4, 5, 2), (2, 3, 4)),
    ],
)
@pytest.mark.parametrize("kind", ["group_mean", "conv", "matched"])
def test_pipeline(sizes: tuple[tuple[int, ...], tuple[int, ...]], kind: str) -> None:
    teacher, student = (Sizes(*one) for one in sizes)
    layers = layer_map(student.num_layers, teacher.num_layers)
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64) - 0.3

    aligner = Aligner(teacher, student, layers, kind).double()
    with torch.no_grad():
        for weight in aligner.parameters():
            weight.add_(some(*weight.shape))
    batch, num_mine, num_theirs = 2, 4, 5
    iou = (some(batch, num_mine, num_theirs).clamp(min=0)).float()
    iou[0, 1] = 0  # a student token without a partner
    iou[1, :, 2] = 0  # a teacher token that nobody matches
    keys, values = (
        [some(batch, teacher.num_heads, num_theirs, teacher.head_size) for _ in range(teacher.num_layers)] for _ in "kv"
    )
    looked = [some(batch, teacher.num_heads, num_theirs) for _ in range(teacher.num_layers)]
    found = dict(zip("KV", aligner(keys, values, iou.double()), strict=True))
    shown = aligner.importance(looked, iou.double())
    for b in range(batch):
        overlap = iou[b].double().tolist()
        for part, entries in (("K", keys), ("V", values)):
            for number in range(student.num_layers):
                adapter = aligner.adapter(part, number)
                parts = (adapter.size.weight, adapter.shares, adapter.gain, adapter.shift)
                wanted = slow.carried(
                    [layer[b].tolist() for layer in entries],
                    overlap,
                    [layers[number]],
                    *(one.tolist() for one in parts),
                )
                torch.testing.assert_close(
                    found[part][number][b], torch.tensor(wanted[0], dtype=torch.float64), atol=1e-9, rtol=1e-9
                )
        fixed = [[float(value) for value in row] for row in slow.groups(student.num_heads, teacher.num_heads)]
        wanted = slow.importance([layer[b].tolist() for layer in looked], overlap, layers, fixed)
        torch.testing.assert_close(
            torch.stack([one[b] for one in shown]), torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=1e-6
        )
