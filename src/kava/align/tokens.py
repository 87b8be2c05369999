"""Alignment of two tokenizations of one text by the characters that their tokens cover.

A token is a span [start, end) of the text in characters, with fractions if several tokens share a character (bytes of
a CJK character, pieces of a ligature). Student and teacher read the same text, so their spans can be compared:

    IoU(i, j) = |overlap of spans i and j| / |union|, and 0 below a threshold

From this [N_s, N_t] matrix `normalised` (rows sum to 1) maps keys and values, `spread` (columns sum to 1) maps
importance, and `matched` marks the student tokens with a partner.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from kava.characters import token_span
from kava.errors import ConfigError, ModelError

Span = tuple[float, float]
TINY = 1e-9  # rounding error; less than any share of a character
SPACES = ("\u2581", "\u0120")  # space marks of unigram and of byte-level tokens


def char_spans(text: str, offsets: Sequence[tuple[int, int]], tokens: Sequence[str] | None = None) -> list[Span]:
    """One span per token of `text`; from the tokens themselves where they spell it byte by byte, else from the offsets.

    A byte-level token covers its share of a character's bytes. Offsets are less exact; with them

    - k tokens that cover one character get equal shares of it, in their order;
    - white space that no token covers belongs to the next token, as in byte-level and most unigram tokenizers;
    - special tokens, and a single space mark without a space in the text, cover nothing.

    `tokens` are the tokens' strings; without them neither bytes nor space marks are recognised.
    """
    exact = None if tokens is None else _byte_spans(text, tokens)
    if exact is not None:
        return exact
    places = [_place(text, *offset, tokens[j] if tokens else "") for j, offset in enumerate(offsets)]
    owners: list[list[int]] = [[] for _ in text]
    for j, place in enumerate(places):
        for character in range(*place):
            owners[character].append(j)
    return [_share(text, owners, j, *place) for j, place in enumerate(places)]


def _byte_spans(text: str, tokens: Sequence[str]) -> list[Span] | None:
    """Spans of byte-level tokens, whose letters stand for bytes; None if the bytes are not those of the text."""
    letters = "".join(tokens)
    if not BYTES.keys() >= set(letters):
        return None
    spelt, whole = bytes(BYTES[letter] for letter in letters), text.encode()
    if spelt not in (whole, b" " + whole):
        return None
    ends = [0.0] * (len(spelt) - len(whole))  # an added leading space belongs to no token
    for number, character in enumerate(text):
        size = len(character.encode())
        ends += [number + part / size for part in range(size)]
    ends.append(float(len(text)))
    cuts = list(accumulate((len(token) for token in tokens), initial=0))
    return [(ends[start], ends[end]) for start, end in pairwise(cuts)]


def _byte_letters() -> dict[str, int]:
    """The letter of byte-level tokens for each byte: itself if printable, else one from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_letters()


def _place(text: str, start: int, end: int, token: str) -> tuple[int, int]:
    """The checked offset; empty for a space mark without a space in the text."""
    if not 0 <= start <= end <= len(text):
        raise ModelError(f"a token's offset is ({start}, {end}) in a text of {len(text)} characters")
    covered = text[start:end]
    return (start, start) if token in SPACES and covered != token and not covered.isspace() else (start, end)


def _share(text: str, owners: list[list[int]], j: int, start: int, end: int) -> Span:
    """Token j's span, given the tokens that own each character."""
    if start == end:
        return float(start), float(start)
    first, last = owners[start], owners[end - 1]
    begin = start + first.index(j) / len(first)
    while first[0] == j and start > 0 and not owners[start - 1] and text[start - 1].isspace():
        start -= 1
        begin = float(start)
    return begin, end - 1 + (last.index(j) + 1) / len(last)


def spans_of(text: str, tokenizer: Any) -> list[Span]:
    """The spans of a text's tokens, without special tokens; the tokenizer must be a fast one."""
    if not getattr(tokenizer, "is_fast", False):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ModelError(
            f"the tokenizer {name} ({type(tokenizer).__name__}) is a slow one: it cannot tell which characters a token covers",
            "use a checkpoint with a tokenizer.json, or convert it: AutoTokenizer.from_pretrained(...).save_pretrained",
        )
    ids, offsets = token_span(tokenizer, text)
    return char_spans(text, offsets, tokenizer.convert_ids_to_tokens(ids))


def compute_iou(left: Span, right: Span) -> float:
    """Overlap over union of two spans; 0 if either is empty."""
    overlap = min(left[1], right[1]) - max(left[0], right[0])
    if overlap <= TINY:
        return 0.0
    return overlap / ((left[1] - left[0]) + (right[1] - right[0]) - overlap)


def iou_matrix(student: Sequence[Span], teacher: Sequence[Span], threshold: float = 0.1) -> Tensor:
    """[N_s, N_t] float32: the IoU of every pair, 0 below the threshold."""
    rows, columns = (torch.tensor(list(side), dtype=torch.float64).view(-1, 2) for side in (student, teacher))
    overlap = torch.minimum(rows[:, None, 1], columns[:, 1]) - torch.maximum(rows[:, None, 0], columns[:, 0])
    overlap = torch.where(overlap > TINY, overlap, 0.0)
    union = (rows[:, 1] - rows[:, 0])[:, None] + (columns[:, 1] - columns[:, 0]) - overlap
    iou = overlap / torch.where(overlap > 0, union, 1.0)
    return torch.where(iou >= threshold - TINY, iou, 0.0).float()


def token_by_token(num_student: int, num_teacher: int) -> Tensor:
    """[N_s, N_t] float32: 1 at (j, j) up to the shorter length. This truncates the longer text."""
    return torch.eye(num_student, num_teacher)


def build_char_align_matrix(
    text: Any, teacher_tok: Any, student_tok: Any, normalize: bool = True, min_threshold: float = 0.1
) -> Tensor:
    """[N_s, N_t] of one text; rows sum to 1 if `normalize`, and a row of zeros is an unmatched student token.

    The order (student_tok, teacher_tok, text) is accepted, too.
    """
    if isinstance(student_tok, str) and not isinstance(text, str):
        text, student_tok = student_tok, text
    if not isinstance(text, str):
        raise ConfigError("an alignment needs a text", "build_char_align_matrix(text, teacher_tok, student_tok)")
    iou = iou_matrix(spans_of(text, student_tok), spans_of(text, teacher_tok), min_threshold)
    return normalised(iou) if normalize else iou


def normalised(iou: Tensor) -> Tensor:
    """[..., N_s, N_t] with rows that sum to 1; unmatched rows stay 0."""
    return _divided(iou, -1)


def spread(iou: Tensor) -> Tensor:
    """[..., N_s, N_t] with columns that sum to 1, to distribute a teacher token's mass; unmatched columns stay 0."""
    return _divided(iou, -2)


def _divided(iou: Tensor, dim: int) -> Tensor:
    total = iou.sum(dim, keepdim=True)
    return iou / torch.where(total > 0, total, 1.0)


def matched(iou: Tensor) -> Tensor:
    """[..., N_s] bool: student tokens with a teacher token."""
    return (iou > 0).any(-1)


def coverage(iou: Tensor, mask: Tensor | None = None) -> float:
    """Share of the real student tokens that are matched; 1 if there are none. iou [..., N_s, N_t]; mask [..., N_s]."""
    has_partner = matched(iou)
    real = torch.ones_like(has_partner) if mask is None else mask
    count = int(real.sum())
    return int((has_partner & real).sum()) / count if count else 1.0
