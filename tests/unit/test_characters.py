"""Special tokens that somebody types are characters, in every tokenizer; ordinary text gives the ids it always gave."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo_tokenizers as zoo
from kava.align.tokens import spans_of
from kava.backbone.load import SHIPPED, load_tokenizer
from kava.backbone.tokens import NAMES, add_special_tokens
from kava.characters import special_names, token_ids, token_spans
from kava.config import ModelConfig
from kava.data.encode import Encoder
from kava.data.example import Example

SAMPLE = Path(__file__).parents[2] / "data" / "sample_train.jsonl"


def students(name):
    """The tokenizer of a student: with the three tokens of its text, and one of a chat that its base brought along."""
    tokenizer = deepcopy(zoo.READERS[name]())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    add_special_tokens(tokenizer)
    return tokenizer


def before(tokenizer, texts):
    """The ids as they were before special tokens became characters."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", list(zoo.READERS))
def test_typed_special_tokens_are_characters(name):
    tokenizer = students(name)
    control = set(tokenizer.convert_tokens_to_ids(special_names(tokenizer))) - {tokenizer.unk_token_id}
    assert len(control) >= 7  # three of the student, the base's own, one of a chat
    for typed in special_names(tokenizer):
        for text in (typed, f"3+4?{typed}", f"{typed}3+4?", f"a {typed} b", typed * 2):
            assert control.isdisjoint(token_ids(tokenizer, [text])[0]), text
            assert control.isdisjoint(token_spans(tokenizer, [text])[0][0]), text
            assert len(spans_of(text, tokenizer)) == len(token_ids(tokenizer, [text])[0])


@pytest.mark.parametrize("name", list(zoo.READERS))
def test_every_segment_of_a_row_is_characters(name):
    tokenizer = students(name)
    control = set(tokenizer.convert_tokens_to_ids(special_names(tokenizer))) - {tokenizer.unk_token_id}
    row = Example("x", "q <eos> <bot>?", ("<latent>1+1=2<eot>", "2+2=4 <eos>"), "<eos>4<|im_end|>")
    encoded = Encoder(tokenizer, drop_last_step=False)(row)
    ids = [*encoded.question[len(Encoder(tokenizer).bos) :], *encoded.cot, *encoded.answer]
    assert control.isdisjoint(ids)
    if name not in ("words", "word_level", "unigram"):  # these lose characters of any text
        assert tokenizer.decode(encoded.answer) == "<eos>4<|im_end|>"


@pytest.mark.parametrize("name", [*zoo.READERS, "shipped"])
def test_the_sample_keeps_every_id(name):
    tokenizer = load_tokenizer(SHIPPED["kava:embedded"], ModelConfig()) if name == "shipped" else students(name)
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for text in (row["question"] + "\n", " ".join(row["steps"]), row["answer"])]
    assert token_ids(tokenizer, texts) == before(tokenizer, texts)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    old = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    assert [(ids, list(at)) for ids, at in token_spans(tokenizer, texts)] == [(ids, list(at)) for ids, at in old]


@pytest.mark.parametrize("name", list(zoo.READERS))
@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_any_text_without_special_tokens_keeps_its_ids(name, text):
    tokenizer = zoo.READERS[name]()
    if not any(typed in text.lower() for typed in special_names(tokenizer)):
        assert token_ids(tokenizer, [text]) == before(tokenizer, [text])


def test_tokens_added_later_are_characters_too():
    tokenizer = deepcopy(zoo.word_level())
    assert token_ids(tokenizer, ["a <bot> <eos>"]) == [
        [tokenizer.convert_tokens_to_ids("a"), tokenizer.unk_token_id, tokenizer.unk_token_id]
    ]
    add_special_tokens(tokenizer)
    assert set(tokenizer.convert_tokens_to_ids(list(NAMES))).isdisjoint(token_ids(tokenizer, ["a <bot> <eos>"])[0])
