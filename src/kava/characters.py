"""Text as tokens of its characters: a special token that somebody types, such as <eos>, is five letters and no command.

`split_special_tokens` of transformers keeps the tokenizer's added special tokens from being matched. A model that has
their names in its own vocabulary (Unigram, WordLevel, BPE with ignore_merges) spells them all the same; for it the text
is read by a copy of the tokenizer, in which these names contain a character that no text may have.
"""

import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kava.errors import DataError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # spells one byte of a text (byte fallback), whatever it is marked as
NUL = "\0"  # refused in rows and questions
Offsets = list[tuple[int, int]]

_copies: "WeakKeyDictionary[Any, tuple[int, Any]]" = WeakKeyDictionary()  # tokenizer -> its size then, its copy or None


def check_characters(text: str, what: str) -> None:
    """Raises where a text has a character that no tokenizer reads; `what` names the text."""
    problem = "a NUL character" if NUL in text else None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"half a character (the lone surrogate U+{ord(text[error.start]):04X})"
    if problem is not None:
        raise DataError(f"{what} has {problem}, which is no text", "take it out, or save the text anew as UTF-8")


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without bos or eos; `tokenizer` is a fast one."""
    if not texts:  # transformers cannot
        return []
    return list(_tokenized(tokenizer, list(texts))["input_ids"])


def token_spans(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
    """The ids of each text and the characters [start, end) that each token covers."""
    encoded = _tokenized(tokenizer, list(texts), return_offsets_mapping=True)
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def token_span(tokenizer: Any, text: str) -> tuple[list[int], Offsets]:
    """The same of one text."""
    encoded = _tokenized(tokenizer, text, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def special_names(tokenizer: Any) -> list[str]:
    """The texts of the special tokens, longest first."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(names, key=len, reverse=True)


def _tokenized(tokenizer: Any, text: str | list[str], **options: Any) -> Any:
    """What transformers returns for one text or for several, with ids and offsets by their names there."""
    copy = _copy_of(tokenizer)
    if copy is None:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)
    encodings = copy.encode_batch([text] if isinstance(text, str) else text, add_special_tokens=False)
    columns = {"input_ids": [row.ids for row in encodings], "offset_mapping": [row.offsets for row in encodings]}
    return {name: column[0] for name, column in columns.items()} if isinstance(text, str) else columns


def _copy_of(tokenizer: Any) -> Any:
    """The copy that reads texts of this tokenizer; None if it needs none."""
    if not hasattr(tokenizer, "backend_tokenizer"):  # not one of transformers
        return None
    size, copy = _copies.get(tokenizer, (None, None))
    if size != len(tokenizer):  # new, or tokens were added since
        copy = _renamed(tokenizer)
        _copies[tokenizer] = (len(tokenizer), copy)
    return copy


def _renamed(tokenizer: Any) -> Any:
    """A copy of the backend whose special tokens cannot be typed; None if typing their names gives other tokens anyway."""
    names = [name for name in special_names(tokenizer) if name != tokenizer.unk_token and not _BYTE.fullmatch(name)]
    if not names:
        return None
    rows = tokenizer(names, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    numbers = tokenizer.convert_tokens_to_ids(names)
    if not any(number in row for number, row in zip(numbers, rows, strict=True)):
        return None
    backend = tokenizer.backend_tokenizer
    facts = json.loads(backend.to_str())
    new = {name: f"{NUL}{number}{NUL}" for name, number in zip(names, numbers, strict=True)}
    vocabulary = facts["model"]["vocab"]
    if isinstance(vocabulary, dict):
        facts["model"]["vocab"] = {new.get(name, name): number for name, number in vocabulary.items()}
    else:  # of a Unigram model: pieces with their scores, in the order of their ids
        facts["model"]["vocab"] = [[new.get(piece, piece), score] for piece, score in vocabulary]
    for token in facts["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    copy = type(backend).from_str(json.dumps(facts))
    copy.no_truncation()
    copy.no_padding()
    return copy
