"""Text to ids to batches: spans decode to the right text, padding on either side changes nothing but the columns."""

from __future__ import annotations

import pytest
import torch

import zoo_tokenizers as zoo
from kava.data.collate import Collator
from kava.data.encode import CUE, Encoder, encode_split
from kava.data.example import Example, stable_hash
from kava.data.spans import equation_result, overlaps, result_spans, sentence_result
from kava.errors import DataError

AUG = Example("aug/0", "How many clips did she sell?", ("<<48/2=24>>", "<<48+24=72>>", "<<72*1200=86400>>"), "86400")
NL = Example("nl/0", "How many eggs?", ("She has 16 - 3 - 4 = 9 eggs left.", "Nothing else.", "So 18 dollars."), "-18")


def squeeze(text: str) -> str:
    return "".join(text.split()).lower()


@pytest.mark.parametrize("name", list(zoo.TOKENIZERS))
@pytest.mark.parametrize(
    ("example", "cot_type", "drop", "results"),
    [
        (AUG, "equation", True, ["24", "72"]),
        (AUG, "equation", False, ["24", "72", "86400"]),
        (NL, "natural_language", True, ["9"]),
        (NL, "natural_language", False, ["9", "18"]),
    ],
)
def test_segments_and_results_decode_to_their_text(name, example, cot_type, drop, results):
    tokenizer = zoo.TOKENIZERS[name]()
    encoded = Encoder(tokenizer, drop_last_step=drop, cot_type=cot_type)(example)
    steps = example.steps[:-1] if drop else example.steps
    assert squeeze(tokenizer.decode(encoded.question, skip_special_tokens=True)) == squeeze(example.question)
    assert squeeze(tokenizer.decode(encoded.cot)) == squeeze(" ".join(steps))
    assert squeeze(tokenizer.decode(encoded.cue)) == squeeze(CUE)
    assert squeeze(tokenizer.decode(encoded.answer)) == example.answer
    assert len(encoded.result) == len(encoded.cot)
    marked = [i for i, flag in zip(encoded.cot, encoded.result, strict=True) if flag]
    assert squeeze(tokenizer.decode(marked)) == "".join(results)


def test_bos_opens_the_question_and_nothing_else():
    tokenizer = zoo.bos()
    encoded = Encoder(tokenizer)(AUG)
    assert encoded.question[0] == tokenizer.bos_token_id
    assert encoded.question[1:] == Encoder(zoo.byte_level())(AUG).question
    for segment in (encoded.question[1:], encoded.cot, encoded.cue, encoded.answer):
        assert tokenizer.bos_token_id not in segment


def test_newline_ends_the_question_and_the_answer_has_no_leading_space():
    tokenizer = zoo.byte_level()
    encoded = Encoder(tokenizer)(Example("x", "Why?", (), " 42 "))
    assert tokenizer.decode(encoded.question) == "Why?\n"
    assert tokenizer.decode(encoded.answer) == "42"
    assert encoded.eos == tokenizer.eos_token_id


@pytest.mark.parametrize("steps", [(), ("<<1+1=2>>",)])
def test_dropping_the_last_step_leaves_an_empty_cot(steps):
    encoded = Encoder(zoo.byte_level())(Example("x", "q", steps, "2"))
    assert (encoded.cot, encoded.result) == ([], [])


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("<<16-3-4=9>>", "9"),
        ("<<a=b=12>>", "12"),
        ("3+4=2;", "2"),
        ("x = 5 .", "5"),
        ("12/60=$0.2", "$0.2"),
        ("5*0.1=0.5.", "0.5"),
        ("nothing here", None),
        ("<<3+4=>>", None),
        ("3=", None),
    ],
)
def test_equation_result(step, result):
    span = equation_result(step)
    assert (None if span is None else step[slice(*span)]) == result


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("3 plus 4 is 2.", "2"),
        ("He pays $1,234.50.", "1,234.50"),
        ("So it is -7 now", "-7"),
        ("That is 10-5", "5"),
        ("Half of it is .5", ".5"),
        ("no number", None),
    ],
)
def test_sentence_result(step, result):
    span = sentence_result(step)
    assert (None if span is None else step[slice(*span)]) == result


def test_spans_count_the_separators():
    steps = ("<<1+1=2>>", "no result", "<<2+3=5>>")
    text = " ".join(steps)
    assert [text[a:b] for a, b in result_spans(steps, "equation")] == ["2", "5"]


def test_overlaps_by_brute_force():
    offsets = [(0, 2), (2, 2), (2, 5), (5, 6), (6, 9), (9, 12)]
    spans = [(1, 3), (6, 7), (8, 9)]
    slow = [any(max(a, s) < min(b, e) for a, b in spans) for s, e in offsets]
    assert overlaps(offsets, spans) == slow


def test_batches_equal_single_examples_and_are_kept_compactly():
    examples = [Example(f"e/{i}", f"Question {i}?", tuple(f"{j}+{i}={i + j}" for j in range(i % 4)), str(i))
                for i in range(30)]  # fmt: skip
    encoder = Encoder(zoo.bos())
    encoded = encoder.encode_all(examples, batch_size=7)
    assert list(encoded) == [encoder(example) for example in examples]
    assert encoded[-1] == encoded[29] == encoder(examples[29])
    assert encoded[3:5] == [encoder(examples[3]), encoder(examples[4])]
    assert encoded.lengths("cot").tolist() == [len(e.cot) for e in encoded]
    with pytest.raises(IndexError):
        encoded[30]


def test_long_examples_are_skipped_counted_and_logged(caplog):
    examples = [Example(str(i), "q" + " very" * i + "?", (), "1") for i in range(10)]
    encoder = Encoder(zoo.byte_level())
    limit = len(encoder(examples[6]))
    split = encode_split(examples, encoder, max_length=limit)
    assert (len(split.encoded), split.skipped, split.total) == (7, 3, 10)
    assert "3 of 10" in caplog.text
    with pytest.raises(DataError, match="all are longer than 3 tokens"):
        encode_split(examples, encoder, max_length=3)


class NoEos:
    is_fast = True
    eos_token_id = None


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (zoo.SlowTokenizer, "SlowTokenizer is a slow one"),
        (NoEos, "no end-of-sequence"),
        (zoo.wrapped, "wraps an empty"),
    ],
)
def test_unusable_tokenizers_are_refused(tokenizer, words):
    with pytest.raises(DataError, match=words) as caught:
        Encoder(tokenizer())
    assert caught.value.hint


def test_unknown_cot_type_and_empty_answer():
    with pytest.raises(DataError, match="cot_type 'prose'"):
        Encoder(zoo.byte_level(), cot_type="prose")
    with pytest.raises(DataError, match=r"example e/7: the answer ' ' has no tokens"):
        Encoder(zoo.byte_level())(Example("e/7", "q", (), " "))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 3])
def test_collator_keeps_every_token_on_either_side(side, size):
    examples = [AUG, Example("b", "Short?", ("<<1+1=2>>",), "2"), Example("c", "No steps at all?", (), "123")][:size]
    encoded = [Encoder(zoo.bos())(e) for e in examples]
    batch = Collator(pad_token_id=0, padding_side=side)(encoded)
    for b, e in enumerate(encoded):
        for name, ids in (("question", e.question), ("cot", e.cot), ("tail", [*e.cue, *e.answer, e.eos])):
            mask = batch[f"{name}_mask"][b]
            assert batch[name].dtype == torch.long
            assert mask.dtype == torch.bool
            assert batch[name][b][mask].tolist() == ids
            assert (batch[name][b][~mask] == 0).all()
            assert mask.sort(descending=side == "right", stable=True).values.equal(mask)
        assert batch["cot_result"][b][batch["cot_mask"][b]].tolist() == e.result
        assert not batch["cot_result"][b][~batch["cot_mask"][b]].any()
        assert batch["tail"][b][batch["tail_answer"][b]].tolist() == e.answer
        assert batch["tail"][b, batch["cue_last"][b]] == e.cue[-1]
        assert batch["tail"][b, batch["cue_last"][b] + 1] == e.answer[0]
        assert batch["example_id"][b] == stable_hash(e.id)


def test_collator_without_any_cot_has_no_columns():
    encoded = [Encoder(zoo.bos())(Example(str(i), "Q?", (), "1")) for i in range(3)]
    batch = Collator(0)(encoded)
    for name in ("cot", "cot_mask", "cot_result"):
        assert batch[name].shape == (3, 0)
    assert batch["cot"].dtype == torch.long
    assert batch["cot_result"].dtype == torch.bool


def test_collator_refuses_an_unknown_side():
    with pytest.raises(DataError, match="padding_side"):
        Collator(0, "middle")


def test_stable_hash_is_pinned():
    """Draws, splits and subsets hang on it: a change of this number changes every run."""
    assert stable_hash("gsm8k/train/0") == 2213570159023261428
