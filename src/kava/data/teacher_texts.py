"""One text tokenized for the student and for several teachers, with the alignment of their tokens.

Every teacher has its own tokenizer and may have a prompt around the question. The chain of thought is the same text for
all, so its tokens are matched by characters (`align/tokens.py`); nothing is truncated unless mixture.time is truncate.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from kava.characters import token_spans
from kava.data.collate import Collator
from kava.data.encode import CUE, STEP_SEPARATOR, Encoded, Encoder
from kava.data.example import Example
from kava.data.load import ExampleStream
from kava.errors import DataError
from kava.progress import progress, track

if TYPE_CHECKING:
    from torch import Tensor

    from kava.align.tokens import Span

CACHE_SIZE = 16_000_000  # numbers of cached alignment matrices (64 MB)
LOOKED_AT = 256  # examples of which the coverage is computed
MARGIN = 16  # tokens beyond one per byte: bos, eos, word marks before a segment
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherTokenization:
    """One teacher's tokenizer, the prompt around the question, its padding id and its longest text."""

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
    """The student's encoder, the teachers' tokenizations, and how tokens are matched: soft (IoU) or truncate."""

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
class _TeacherTexts:
    """One example in the tokens of every teacher; `iou` [N_s, N_t] each, `cot` the student's ids."""

    cot: list[int]
    encoded: tuple[Encoded, ...]
    iou: "tuple[Tensor, ...]"

    @property
    def size(self) -> int:
        return sum(matrix.numel() for matrix in self.iou)


def texts_of(examples: Iterable[Example]) -> dict[str, Example]:
    """The examples by id, as `TeachersCollator` looks them up."""
    if isinstance(examples, ExampleStream):
        raise DataError(
            "a stream cannot be read by several teachers: each looks its text up by the example's id",
            "set dataset.streaming=false",
        )
    texts: dict[str, Example] = {}
    for example in examples:
        if texts.setdefault(example.id, example) != example:
            raise DataError(f"two different examples have the id {example.id}", "give every example an id of its own")
    return texts


def view(batch: "Mapping[str, Tensor]", number: int) -> "dict[str, Tensor]":
    """The part of a batch for teacher `number`: its own tokens under the collator's names."""
    prefix = f"t{number}."
    own = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
    del own["iou"]
    return own | {"example_id": batch["example_id"]}


class TeachersCollator:
    """The student's batch, and for teacher i under "t{i}." every key of `Collator` but example_id, and

    t{i}.iou [B, N_s, N_t] float32: overlap of characters of the student's with the teacher's CoT tokens, 0 = unmatched
    """

    def __init__(
        self,
        collate: Collator,
        tokenizations: TeacherTokenizations,
        texts: Mapping[str, Example],
        room: int = CACHE_SIZE,
    ):
        self.collate, self.tokenizations, self.texts, self.room = collate, tokenizations, texts, room
        self._collators = [Collator(tokenization.pad, collate.padding_side) for tokenization in tokenizations.each]
        self._cache: OrderedDict[str, _TeacherTexts] = OrderedDict()
        self._cached = 0

    def __call__(self, examples: Sequence[Encoded]) -> "dict[str, Tensor]":
        batch = self.collate(examples)
        rows = self.read(examples)
        for i, collate in enumerate(self._collators):
            own = collate([row.encoded[i] for row in rows])
            del own["example_id"]
            batch |= {f"t{i}.{name}": value for name, value in own.items()}
            batch[f"t{i}.iou"] = _padded([row.iou[i] for row in rows], batch["cot_mask"], own["cot_mask"])
        return batch

    def read(self, examples: Sequence[Encoded]) -> list[_TeacherTexts]:
        """The examples in the teachers' tokens; the latest are cached."""
        missing = {row.id: row for row in examples if row.id not in self._cache}
        fresh = dict(zip(missing, self._tokenize(list(missing)), strict=True)) if missing else {}
        rows = []
        for example in examples:
            row = fresh.get(example.id) or self._cache[example.id]
            if row.cot != example.cot:
                raise DataError(
                    f"example {example.id}: its text does not give the student's tokens",
                    "texts, tokenizer, dataset.cot_type, drop_last_step and prompt must be those of the encoded examples",
                )
            rows.append(row)
        self._add_to_cache(fresh)
        return rows

    # -- before the first step -----------------------------------------------------------------------------------

    def check(self, rows: Sequence[Encoded], floor: float, of: str = "", first: int = LOOKED_AT) -> dict[str, Coverage]:
        """The coverage of each teacher; refuses texts too long for a teacher, and coverage below `floor`."""
        self._refuse_too_long(rows)
        with progress(f"matching the teachers' tokens{of}"):
            coverages = self.coverage(rows, first)
        for name, coverage in coverages.items():
            if coverage.share is None:
                continue
            log.info("teacher %s matches %.1f %% of the student's CoT tokens%s", name, 100 * coverage.share, of)
            if coverage.share < floor:
                worst = ", ".join(f"{key} ({100 * share:.0f} %)" for key, share in coverage.worst)
                raise DataError(
                    f"teacher {name} matches {100 * coverage.share:.1f} % of the student's CoT tokens, mixture.coverage_floor is "
                    f"{100 * floor:g} %; worst: {worst}",
                    "lower mixture.iou_threshold or mixture.coverage_floor, or leave this teacher out",
                )
        return coverages

    def coverage(self, rows: Sequence[Encoded], first: int = LOOKED_AT) -> dict[str, Coverage]:
        """The coverage of the first rows, by teacher."""
        from kava.align.tokens import matched

        examples = [row for row in rows[:first] if row.cot]
        texts = self.read(examples)
        coverages = {}
        for i, tokenization in enumerate(self.tokenizations.each):
            counts = [int(matched(text.iou[i]).sum()) for text in texts]
            pairs = zip(examples, counts, strict=True)
            shares = sorted(((row.id, count / len(row.cot)) for row, count in pairs), key=lambda pair: pair[1])
            share = sum(counts) / sum(len(row.cot) for row in examples) if examples else None
            coverages[tokenization.name] = Coverage(share, tuple(shares[:3]))
        return coverages

    def example(self, row: Encoded, number: int) -> dict[str, Any]:
        """One text with the student's and a teacher's tokens and their matrix, as plain data for a figure."""
        text, teacher = self._cot(row.id), self.tokenizations.each[number]
        sides = (("student", self.tokenizations.student), ("teacher", teacher.encoder))
        pieces = {
            side: [text[int(start) : ceil(end)] for start, end in _spans(encoder, [text])[0][1]]
            for side, encoder in sides
        }
        return {"text": text, **pieces, "iou": self.read([row])[0].iou[number].tolist()}

    def _refuse_too_long(self, rows: Sequence[Encoded]) -> None:
        ids = getattr(rows, "ids", None) or [row.id for row in rows]
        for tokenization in self.tokenizations.each:
            limit, lengths = tokenization.max_positions, []
            if limit is None:
                continue
            for key in track(ids, f"lengths for teacher {tokenization.name}"):
                text = tokenization.apply_prompt(self._text(key))
                # a token covers at least one byte, so few texts have to be tokenized
                size = sum(len(part.encode()) + 1 for part in (text.question, *text.steps, CUE, text.answer)) + MARGIN
                size += 0 if tokenization.encoder.chat is None else tokenization.encoder.chat.size
                if size > limit and (length := len(tokenization.encoder(text))) > limit:
                    lengths.append(length)
            if lengths:
                raise DataError(
                    f"{len(lengths)} examples need up to {max(lengths)} positions of teacher {tokenization.name}, which has "
                    f"{limit}",
                    "skip them with dataset.max_length, or take a teacher with a longer context",
                )

    # -- one text ------------------------------------------------------------------------------------------------

    def _tokenize(self, ids: list[str]) -> list[_TeacherTexts]:
        texts, cots = [self._text(key) for key in ids], [self._cot(key) for key in ids]
        student = _spans(self.tokenizations.student, cots)
        encoded, iou = [], []
        known: dict[int, list[Tensor]] = {}  # teachers with one tokenizer differ in their prompts only
        for tokenization in self.tokenizations.each:
            encoded.append(tokenization.encoder.encode_batch([tokenization.apply_prompt(text) for text in texts]))
            key = id(tokenization.encoder)
            if key not in known:
                teacher = _spans(tokenization.encoder, cots)
                known[key] = [self._iou(a[1], b[1]) for a, b in zip(student, teacher, strict=True)]
            iou.append(known[key])
        rows = zip(student, zip(*encoded, strict=True), zip(*iou, strict=True), strict=True)
        return [_TeacherTexts(cot, per_teacher, matrices) for (cot, _), per_teacher, matrices in rows]

    def _iou(self, student: "Sequence[Span]", teacher: "Sequence[Span]") -> "Tensor":
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

    def _add_to_cache(self, fresh: Mapping[str, _TeacherTexts]) -> None:
        for key, row in fresh.items():
            self._cache[key] = row
            self._cached += row.size
        while self._cached > self.room and self._cache:
            self._cached -= self._cache.popitem(last=False)[1].size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict(), "_cached": 0}  # every process has its own cache


def _spans(encoder: Encoder, texts: list[str]) -> "list[tuple[list[int], list[Span]]]":
    """Ids and spans of the tokens of each text."""
    from kava.align.tokens import char_spans

    tokenizer = encoder.tokenizer
    rows = zip(texts, token_spans(tokenizer, texts), strict=True)
    return [(list(ids), char_spans(text, at, tokenizer.convert_ids_to_tokens(ids))) for text, (ids, at) in rows]


def _padded(matrices: "Sequence[Tensor]", rows: "Tensor", columns: "Tensor") -> "Tensor":
    """[B, N_s, N_t] with each matrix at the real tokens of both masks."""
    import torch

    out = torch.zeros(*rows.shape, columns.shape[1])
    for b, matrix in enumerate(matrices):
        out[b, rows[b].nonzero(), columns[b].nonzero()[:, 0]] = matrix
    return out
