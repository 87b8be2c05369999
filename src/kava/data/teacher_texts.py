"""One text in the tokens of the student and of several teachers, and which of these tokens cover the same characters.

Every teacher has its own tokenizer and may have a prompt around the question. The chain of thought is the same text for
all, so its tokens are matched by characters (`align/tokens.py`); nothing is cut unless mixture.time is truncate.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any

from kava.data.collate import Collator
from kava.data.encode import CUE, STEP_SEPARATOR, Encoded, EncodedSet, Encoder
from kava.data.example import Example
from kava.data.load import ExampleStream
from kava.data.progress import progress_bar
from kava.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from kava.align.tokens import Span

REMEMBERED = 16_000_000  # numbers of alignment matrices that are kept (64 MB)
LOOKED_AT = 256  # examples from which the coverage is taken
MARGIN = 16  # tokens beyond one per byte: bos, eos, word marks before a segment
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherTokenization:
    """How one teacher reads: its tokens, the words around the question, the pad that is masked anyway, its last position."""

    name: str
    encoder: Encoder
    template: str = "{question}"
    pad: int = 0
    max_positions: int | None = None

    def apply_prompt(self, example: Example) -> Example:
        """The example with the prompt around its question."""
        return replace(example, question=self.template.replace("{question}", example.question))


@dataclass(frozen=True)
class TeacherTokenizations:
    """The student's encoder, the teachers' tokenizations, and how tokens are matched: soft above a threshold, or truncate."""

    student: Encoder
    each: tuple[TeacherTokenization, ...]
    time: str = "soft"
    threshold: float = 0.1


@dataclass(frozen=True)
class Coverage:
    """Share of the student's CoT tokens that a teacher matches (None: there are none), and the worst examples by id."""

    share: float | None
    worst: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _Read:
    """One example as the teachers read it; iou [N_s, N_t] each."""

    cot: list[int]
    encoded: tuple[Encoded, ...]
    iou: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return sum(one.numel() for one in self.iou)


def texts_of(examples: Iterable[Example]) -> dict[str, Example]:
    """The examples by id, which is how the collator finds the text of a row."""
    if isinstance(examples, ExampleStream):
        raise DataError(
            "a stream cannot be read by several teachers: each looks its text up by the example's id",
            "set dataset.streaming=false",
        )
    found: dict[str, Example] = {}
    for example in examples:
        if found.setdefault(example.id, example) != example:
            raise DataError(f"two different examples have the id {example.id}", "give every example an id of its own")
    return found


def encode_for_teacher(
    rows: Iterable[Encoded], examples: Iterable[Example], tokenization: TeacherTokenization, progress: bool = True
) -> EncodedSet:
    """The examples of these rows, in their order, as one teacher reads them."""
    texts = texts_of(examples)
    asked = [tokenization.apply_prompt(texts[one.id]) for one in rows]
    return tokenization.encoder.encode_all(asked, progress=progress)


def view(batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """What teacher `number` reads of a batch: its own tokens under the collator's names."""
    prefix = f"t{number}."
    own = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
    del own["iou"]
    return own | {"example_id": batch["example_id"]}


class TeachersCollator:
    """The student's batch, and for teacher i under "t{i}." every key of `Collator` but example_id, and

    t{i}.iou [B, N_s, N_t] float32: overlap of characters of the student's with the teacher's CoT tokens, 0 = unmatched
    """

    def __init__(
        self, collate: Collator, tokenizations: TeacherTokenizations, texts: Mapping[str, Example], room: int = REMEMBERED
    ):
        self.collate, self.tokenizations, self.texts = collate, tokenizations, texts
        self.room = room
        self._collators = [Collator(tokenization.pad, collate.padding_side) for tokenization in tokenizations.each]
        self._known: OrderedDict[str, _Read] = OrderedDict()
        self._held = 0

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        batch = self.collate(examples)
        found = self.read(examples)
        for i, collate in enumerate(self._collators):
            own = collate([one.encoded[i] for one in found])
            del own["example_id"]
            batch |= {f"t{i}.{name}": value for name, value in own.items()}
            batch[f"t{i}.iou"] = _padded([one.iou[i] for one in found], batch["cot_mask"], own["cot_mask"])
        return batch

    def read(self, examples: Sequence[Encoded]) -> list[_Read]:
        """The examples as the teachers read them; the latest are remembered."""
        missing = {one.id: one for one in examples if one.id not in self._known}
        fresh = dict(zip(missing, self._fresh(list(missing.values())), strict=True)) if missing else {}
        found = []
        for one in examples:
            read = fresh.get(one.id) or self._known[one.id]
            if read.cot != one.cot:
                raise DataError(
                    f"example {one.id}: its text does not give the student's tokens",
                    "texts, tokenizer, dataset.cot_type and dataset.drop_last_step must be those of the encoded examples",
                )
            found.append(read)
        self._remember(fresh)
        return found

    # -- before the first step -----------------------------------------------------------------------------------

    def check(self, rows: Sequence[Encoded], floor: float, first: int = LOOKED_AT) -> dict[str, Coverage]:
        """Refuses texts that are too long for a teacher, or of which it matches too little; the coverage of each."""
        self._refuse_too_long(rows)
        found = self.coverage(rows, first)
        for name, one in found.items():
            if one.share is None:
                continue
            log.info("teacher %s matches %.1f %% of the student's CoT tokens", name, 100 * one.share)
            if one.share < floor:
                worst = ", ".join(f"{key} ({100 * share:.0f} %)" for key, share in one.worst)
                raise DataError(
                    f"teacher {name} matches {100 * one.share:.1f} % of the student's CoT tokens, mixture.coverage_floor is "
                    f"{100 * floor:g} %; worst: {worst}",
                    "lower mixture.iou_threshold or mixture.coverage_floor, or leave this teacher out",
                )
        return found

    def coverage(self, rows: Sequence[Encoded], first: int = LOOKED_AT) -> dict[str, Coverage]:
        """Of the first rows, by teacher."""
        from kava.align.tokens import matched

        found: list[list[tuple[str, int, int]]] = [[] for _ in self.tokenizations.each]
        for part in _portions(rows, first):
            for one, read in zip(part, self.read(part), strict=True):
                if one.cot:
                    for i, iou in enumerate(read.iou):
                        found[i].append((one.id, int(matched(iou).sum()), len(one.cot)))
        return {tokenization.name: _coverage(counts) for tokenization, counts in zip(self.tokenizations.each, found, strict=True)}

    def example(self, row: Encoded, number: int) -> dict[str, Any]:
        """One text with both tokenizations and their matrix, as plain data for a picture."""
        text, theirs = self._cot(row.id), self.tokenizations.each[number]
        sides = (("student", self.tokenizations.student), ("teacher", theirs.encoder))
        pieces = {
            side: [text[int(start) : ceil(end)] for start, end in _spans(encoder, [text])[0][1]]
            for side, encoder in sides
        }
        return {"text": text, **pieces, "iou": self.read([row])[0].iou[number].tolist()}

    def _refuse_too_long(self, rows: Sequence[Encoded]) -> None:
        for tokenization in self.tokenizations.each:
            if tokenization.max_positions is None:
                continue
            ids = getattr(rows, "ids", None) or [one.id for one in rows]
            shown = progress_bar(ids, f"lengths for {tokenization.name}")
            lengths = list(self._long(tokenization, shown, tokenization.max_positions))
            if lengths:
                raise DataError(
                    f"{len(lengths)} examples need up to {max(lengths)} positions of teacher {tokenization.name}, which has "
                    f"{tokenization.max_positions}",
                    "skip them with dataset.max_length, or take a teacher with a longer context",
                )

    def _long(self, tokenization: TeacherTokenization, ids: Iterable[str], limit: int) -> Iterator[int]:
        """Lengths above the limit. A token covers a byte at least, so that few texts have to be tokenized."""
        for key in ids:
            heard = tokenization.apply_prompt(self._text(key))
            size = sum(len(part.encode()) + 1 for part in (heard.question, *heard.steps, CUE, heard.answer)) + MARGIN
            if size > limit and (length := len(tokenization.encoder(heard))) > limit:
                yield length

    # -- one text ------------------------------------------------------------------------------------------------

    def _fresh(self, examples: list[Encoded]) -> list[_Read]:
        texts = [self._text(one.id) for one in examples]
        cots = [self._cot(one.id) for one in examples]
        mine = _spans(self.tokenizations.student, cots)
        encoded, iou = [], []
        known: dict[int, list[Tensor]] = {}  # teachers of one tokenizer differ in their prompts only
        for tokenization in self.tokenizations.each:
            encoded.append(tokenization.encoder.encode_batch([tokenization.apply_prompt(text) for text in texts]))
            key = id(tokenization.encoder)
            if key not in known:
                theirs = _spans(tokenization.encoder, cots)
                known[key] = [self._iou(a[1], b[1]) for a, b in zip(mine, theirs, strict=True)]
            iou.append(known[key])
        rows = zip(mine, zip(*encoded, strict=True), zip(*iou, strict=True), strict=True)
        return [_Read(ids, heard, matrices) for (ids, _), heard, matrices in rows]

    def _iou(self, student: Sequence[Span], teacher: Sequence[Span]) -> Tensor:
        from kava.align.tokens import iou_matrix, token_by_token

        if self.tokenizations.time == "truncate":
            return token_by_token(len(student), len(teacher))
        return iou_matrix(student, teacher, self.tokenizations.threshold)

    def _text(self, key: str) -> Example:
        try:
            return self.texts[key]
        except KeyError:
            raise DataError(
                f"the text of example {key} is not there, so the teachers cannot read it",
                "give the collator the texts of training and validation examples",
            ) from None

    def _cot(self, key: str) -> str:
        return STEP_SEPARATOR.join(self.tokenizations.student.steps(self._text(key)))

    def _remember(self, fresh: Mapping[str, _Read]) -> None:
        for key, read in fresh.items():
            self._known[key] = read
            self._held += read.size
        while self._held > self.room and self._known:
            self._held -= self._known.popitem(last=False)[1].size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": OrderedDict(), "_held": 0}  # another process remembers its own


def _spans(encoder: Encoder, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
    """Ids and spans of the tokens of each text."""
    from kava.align.tokens import char_spans

    tokenizer = encoder.tokenizer
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows = zip(texts, found["input_ids"], found["offset_mapping"], strict=True)
    return [(list(ids), char_spans(text, at, tokenizer.convert_ids_to_tokens(ids))) for text, ids, at in rows]


def _padded(matrices: Sequence[Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """[B, N_s, N_t] with each matrix at the real tokens of both masks."""
    import torch

    out = torch.zeros(*rows.shape, columns.shape[1])
    for b, matrix in enumerate(matrices):
        out[b, rows[b].nonzero(), columns[b].nonzero()[:, 0]] = matrix
    return out


def _portions(rows: Sequence[Encoded], first: int, size: int = 64) -> Iterator[list[Encoded]]:
    rest = islice(iter(rows), first)
    while part := list(islice(rest, size)):
        yield part


def _coverage(counts: list[tuple[str, int, int]]) -> Coverage:
    total = sum(real for _, _, real in counts)
    shares = sorted(((key, found / real) for key, found, real in counts), key=lambda one: one[1])
    return Coverage(sum(found for _, found, _ in counts) / total if total else None, tuple(shares[:3]))
