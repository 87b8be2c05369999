"""Encodes text as token ids; each segment is tokenized separately, so that its span is known.

    question = [bos] + ids(question + "\\n")     cot = ids(" ".join(steps))     tail = ids(cue) + ids(answer) + [eos]

PCCoT's format (known); the separators, a newline after the question and one space between steps, are [open].
`transformers` is not imported; any fast tokenizer works.
"""

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from kava.characters import Offsets, token_ids, token_spans
from kava.data.chat_prompt import chat_prompt
from kava.data.example import Example
from kava.data.spans import RESULT_OF, WHOLE_STEP, firsts, overlaps, result_spans
from kava.errors import DataError
from kava.progress import track

if TYPE_CHECKING:
    from kava.config import DatasetConfig

CUE = "The answer is:"
QUESTION_END = "\n"
STEP_SEPARATOR = " "

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as ids. `answer`: no eos, no leading space. `result[j]`: cot token j carries a step's result; `begins[j]`:
    it is the first of a step (empty: not known). Tokens of two steps begin the later one."""

    id: str
    question: list[int]
    cot: list[int]
    result: list[bool]
    cue: list[int]
    answer: list[int]
    eos: int
    begins: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens of the teacher's sequence: question, cot, cue, answer, eos."""
        return len(self.question) + len(self.cot) + len(self.cue) + len(self.answer) + 1


class EncodedSet(Sequence[Encoded]):
    """A list of `Encoded` in flat buffers (4 bytes per token): 385,620 rows take about 150 MB."""

    SEGMENTS = ("question", "cot", "answer")

    def __init__(self, cue: list[int], eos: int):
        self.cue, self.eos = cue, eos
        self.ids: list[str] = []
        self._tokens = {name: array("i") for name in self.SEGMENTS}
        self._ends = {name: array("q", [0]) for name in self.SEGMENTS}
        self._result, self._begins = bytearray(), bytearray()

    def append(self, encoded: Encoded) -> None:
        self.ids.append(encoded.id)
        for name in self.SEGMENTS:
            self._tokens[name].extend(getattr(encoded, name))
            self._ends[name].append(len(self._tokens[name]))
        self._result.extend(encoded.result)
        self._begins.extend(encoded.begins or [False] * len(encoded.cot))

    def extend(self, other: "EncodedSet", max_length: int | None = None) -> None:
        """Adds the rows of `other`, those of at most `max_length` tokens."""
        if max_length is not None and int(other.row_lengths().max(initial=0)) > max_length:
            for row in other:
                if len(row) <= max_length:
                    self.append(row)
            return
        self.ids.extend(other.ids)
        for name in self.SEGMENTS:
            ends = np.asarray(other._ends[name])[1:] + len(self._tokens[name])
            self._ends[name].frombytes(ends.tobytes())
            self._tokens[name].extend(other._tokens[name])
        self._result.extend(other._result)
        self._begins.extend(other._begins)

    def arrays(self) -> dict[str, np.ndarray]:
        """The buffers, all but the ids of the examples; `of_arrays` makes the set again."""
        tokens = {name: np.asarray(self._tokens[name], dtype=np.int32) for name in self.SEGMENTS}
        ends = {f"{name}_ends": np.asarray(self._ends[name]) for name in self.SEGMENTS}
        flags = {"result": self._result, "begins": self._begins}
        return {**tokens, **ends, **{name: np.frombuffer(bytes(f), dtype=np.uint8) for name, f in flags.items()}}

    @classmethod
    def of_arrays(cls, ids: list[str], arrays: Mapping[str, np.ndarray], cue: list[int], eos: int) -> "EncodedSet":
        encoded = cls(cue, eos)
        encoded.ids = ids
        encoded._tokens = {name: array("i", arrays[name].tobytes()) for name in cls.SEGMENTS}
        encoded._ends = {name: array("q", arrays[f"{name}_ends"].tobytes()) for name in cls.SEGMENTS}
        encoded._result, encoded._begins = (bytearray(arrays[name].tobytes()) for name in ("result", "begins"))
        return encoded

    def row_lengths(self) -> np.ndarray:
        """[rows] tokens of each example, question to eos."""
        return np.sum([self.lengths(name) for name in self.SEGMENTS], axis=0) + len(self.cue) + 1

    def lengths(self, segment: str) -> np.ndarray:
        """[rows] number of tokens in "question", "cot" or "answer"."""
        return np.diff(np.asarray(self._ends[segment]))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative indices, and IndexError beyond the end
        cut = {name: slice(self._ends[name][i], self._ends[name][i + 1]) for name in self.SEGMENTS}
        return Encoded(
            id=self.ids[i],
            question=self._tokens["question"][cut["question"]].tolist(),
            cot=self._tokens["cot"][cut["cot"]].tolist(),
            result=[bool(flag) for flag in self._result[cut["cot"]]],
            cue=self.cue,
            answer=self._tokens["answer"][cut["answer"]].tolist(),
            eos=self.eos,
            begins=[bool(flag) for flag in self._begins[cut["cot"]]],
        )


class Encoder:
    """`Encoder(tokenizer)(example) -> Encoded`; `encode_all(examples)` does the same in batches."""

    def __init__(
        self,
        tokenizer: Any,
        drop_last_step: bool = True,
        cot_type: str = "equation",
        prompt: str = "plain",
        step_text: str = "whole",
    ):
        if cot_type not in RESULT_OF:
            raise DataError(f"unknown cot_type {cot_type!r}", f"use one of: {', '.join(RESULT_OF)}")
        self.tokenizer = tokenizer
        self.drop_last_step = drop_last_step
        self.cot_type = cot_type
        self.results_alone = step_text == "results"
        self.eos = _eos(tokenizer)
        self.bos = _bos_prefix(tokenizer)
        self.chat = chat_prompt(tokenizer) if prompt == "chat" else None
        self.cue: list[int] = self._ids([CUE])[0]

    @classmethod
    def of(cls, tokenizer: Any, dataset: "DatasetConfig") -> "Encoder":
        return cls(tokenizer, dataset.drop_last_step, dataset.cot_type, dataset.prompt, dataset.step_text)

    def __call__(self, example: Example) -> Encoded:
        return self.encode_batch([example])[0]

    def steps(self, example: Example) -> tuple[str, ...]:
        """The steps that become the CoT: all of them, or all but the last one (the paper's choice, known); each as it is
        written, or its result alone. A step without a result is left out of a CoT of results."""
        steps = example.steps[:-1] if self.drop_last_step else example.steps
        if not self.results_alone:
            return steps
        places = [(step, RESULT_OF[self.cot_type](step)) for step in steps]
        return tuple(step[slice(*place)] for step, place in places if place is not None)

    def encode_batch(self, examples: Sequence[Example]) -> list[Encoded]:
        if not examples:
            return []
        steps = [self.steps(example) for example in examples]
        questions = self.questions([example.question for example in examples])
        answers = self._ids([example.answer.strip() for example in examples])
        cots = token_spans(self.tokenizer, [STEP_SEPARATOR.join(parts) for parts in steps])
        rows = zip(examples, steps, questions, answers, cots, strict=True)
        return [self._row(*row) for row in rows]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each question: [bos] + ids(question + newline), or the question in the chat template."""
        if self.chat is not None:
            return self.chat.ids(self.tokenizer, texts)
        return [self.bos + ids for ids in self._ids([text + QUESTION_END for text in texts])]

    def encode_all(self, examples: Iterable[Example], batch_size: int = 1000, progress: bool = True) -> EncodedSet:
        """All examples, in order, without a length limit (see `encode_split`)."""
        return encode_split(examples, self, batch_size=batch_size, progress=progress).encoded

    def _row(self, example: Example, steps: Sequence[str], question: list[int], answer: list[int],
             tokens: tuple[list[int], Offsets]) -> Encoded:  # fmt: skip
        cot, offsets = tokens
        if not answer:
            raise DataError(
                f"example {example.id}: the answer {example.answer!r} has no tokens",
                "every example needs a non-empty answer",
            )
        if len(question) == len(self.bos):
            raise DataError(f"example {example.id}: the question {example.question!r} has no tokens")
        kind = WHOLE_STEP if self.results_alone else self.cot_type
        result = overlaps(offsets, result_spans(steps, kind))
        begins = firsts(offsets, steps)
        return Encoded(example.id, question, list(cot), result, self.cue, answer, self.eos, begins)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in token_ids(self.tokenizer, texts)]


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The result of `encode_split`: the examples that fit, and the number of those longer than `max_length`."""

    encoded: EncodedSet
    skipped: int
    total: int

    @classmethod
    def of(cls, encoded: EncodedSet, total: int, max_length: int | None) -> "EncodedSplit":
        """What fits of `total` examples; skipped ones are logged, none left is an error."""
        if skipped := total - len(encoded):
            log.warning("%d of %d examples are longer than %s tokens and are skipped", skipped, total, max_length)
        if not len(encoded):
            raise DataError(
                f"no example is left of {total}" + (f": all are longer than {max_length} tokens" if total else ""),
                "raise dataset.max_length" if total else "the set is empty",
            )
        return cls(encoded, skipped, total)


def encode_split(
    examples: Iterable[Example],
    encoder: Encoder,
    max_length: int | None = None,
    batch_size: int = 1000,
    progress: bool = True,
) -> EncodedSplit:
    """Encodes a split; examples of more than `max_length` tokens (question .. eos) are skipped, counted, logged."""
    encoded = EncodedSet(encoder.cue, encoder.eos)
    total = 0
    for row in encode_batches(track(examples, "tokenizing", unit="examples", show=progress), encoder, batch_size):
        total += 1
        if max_length is None or len(row) <= max_length:
            encoded.append(row)
    return EncodedSplit.of(encoded, total, max_length)


def encode_batches(examples: Iterable[Example], encoder: Encoder, batch_size: int) -> Iterator[Encoded]:
    """Encodes examples lazily, in batches."""
    rest = iter(examples)
    while batch := list(islice(rest, batch_size)):
        yield from encoder.encode_batch(batch)


def _eos(tokenizer: Any) -> int:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer {name} is a slow one: it cannot tell which characters a token covers",
            "use a fast tokenizer (one with a tokenizer.json; do not pass use_fast=False)",
        )
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise DataError(
            f"the tokenizer {name} has no end-of-sequence token, so an answer could never end",
            "set tokenizer.eos_token before encoding, or choose a model that has one",
        )
    return int(tokenizer.eos_token_id)


def _bos_prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: none, or its bos token."""
    prefix = list(tokenizer("")["input_ids"])
    if prefix and prefix != [getattr(tokenizer, "bos_token_id", None)]:
        raise DataError(
            f"the tokenizer {type(tokenizer).__name__} wraps an empty text into the tokens {prefix}; "
            "only nothing or one bos token is supported",
            "set its post-processor to add bos only, or choose a causal language model's tokenizer",
        )
    return prefix
