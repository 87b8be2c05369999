"""`load_examples(dataset, split)`: the examples of a recipe's dataset section.

Validation is the dataset's own split, or rows held out of train: those whose question has the smallest hash for
dataset.seed; all rows with these questions leave train. It never comes from test, nor test from train. Streaming holds
out the same rows, which costs one extra pass over the questions.
"""

import heapq
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kava.data.example import Example, stable_hash
from kava.data.generator import BUILT_IN, Generator
from kava.data.places import FILE_SUFFIXES, Opened, file_rows, is_place, open_set
from kava.data.row_checks import REMEMBERED_OF_STREAM, RowChecks, shared
from kava.data.rows import Rows, TableRows
from kava.data.shuffle_buffer import shuffled
from kava.data.sources import OWN, Source
from kava.data.tasks import TASKS
from kava.errors import DataError
from kava.progress import track

if TYPE_CHECKING:
    from kava.config import DatasetConfig

log = logging.getLogger(__name__)

Sized = TypeVar("Sized", list[Example], range)
SPLITS = ("train", "validation", "test")


def load_examples(
    dataset: "DatasetConfig", split: str, rows: Opened | None = None
) -> "Sequence[Example] | ExampleStream":
    """The examples of one split; with dataset.streaming and split "train" an iterable that reads as it goes.

    `rows` are used in place of the set that `dataset` names.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}", f"one of: {', '.join(SPLITS)}")
    if rows is None and dataset.name in BUILT_IN:
        _check_cot_type(dataset, TASKS[dataset.name].cot_type)
        examples = Generator(dataset.name, dataset.generator, dataset.seed).split(split)
        return _subset(_not_empty(examples, dataset.name, split), dataset, split)
    opened = rows or open_set(dataset.name, dataset.config, dataset.streaming)
    _check_cot_type(dataset, opened.source.cot_type)
    return _from_rows(opened, dataset, split)


def load_file(path: str | Path, cot_type: str = "equation") -> list[Example]:
    """Every row of one .jsonl, .json or .txt file, as for evaluation on the user's file."""
    path = Path(os.path.expanduser(path))
    if not is_place(path, str(path)) or not path.is_file() or path.suffix not in FILE_SUFFIXES:
        what = "is not a .jsonl, .json or .txt file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}", "give a file with one JSON object per line")
    return _not_empty(_read(file_rows(path), OWN, cot_type, path.stem), str(path), "whole")


def load_rows(rows: Any, name: str, cot_type: str = "equation") -> list[Example]:
    """Rows in memory as examples, read as those of a file are."""
    return _not_empty(_read(TableRows(rows, name), OWN, cot_type, name), name, "whole")


class ExampleStream(Iterable[Example]):
    """Training rows, read from the start at every pass, without held-out questions; the first `subset_size` only.

    A subset of a stream is its beginning, since a random choice would need all of it. Iterating gives the rows in the
    order of the file, `in_pass` in the order of training.
    """

    def __init__(self, rows: Rows, source: Source, dataset: "DatasetConfig", prefix: str, held_out: frozenset[int]):
        self.rows, self.source, self.dataset, self.prefix = rows, source, dataset, prefix
        self.held_out = held_out

    def in_pass(self, number: int) -> Iterator[Example]:
        """The rows in the order of one pass of a training, which does not depend on who reads them."""
        return shuffled(self, self.dataset.shuffle_buffer, f"{self.dataset.seed}/stream/{number}")

    def __iter__(self) -> Iterator[Example]:
        count = 0
        for example in _parse(self.rows, self.source, self.dataset.cot_type, self.prefix):
            if _key(example, self.dataset.seed) in self.held_out:
                continue
            yield example
            count += 1
            if count == self.dataset.subset_size:
                return
        _not_empty(range(count), self.dataset.name, "train")


def warn_shared(parts: Mapping[str, Sequence[Example]], dataset: "DatasetConfig", opened: Opened | None = None) -> None:
    """Logs how many questions each split shares with each later one, and the first of them."""
    for (name, examples), (other, rest) in combinations(parts.items(), 2):
        if again := shared(examples, rest):
            first, count = again[0], len(again)
            where = _place(first, name, dataset, opened)
            log.warning("%s: %d of %d questions of %s are also in %s (first: %s)",
                        dataset.name, count, len(examples), name, other, where)  # fmt: skip


def _place(example: Example, split: str, dataset: "DatasetConfig", opened: Opened | None) -> str:
    """File and line of an example."""
    opened = opened or open_set(dataset.name, dataset.config)
    carve = split == "validation" and split not in opened.splits
    rows, _ = _rows_of(opened, dataset.name, "train" if carve else split)
    return next(islice(iter(rows), int(example.id.rpartition("/")[2]), None))[0]


def _from_rows(opened: Opened, dataset: "DatasetConfig", split: str) -> Sequence[Example] | ExampleStream:
    has_validation = "validation" in opened.splits
    carve = split != "test" and not has_validation
    rows, prefix = _rows_of(opened, dataset.name, "train" if carve else split)
    if split == "train" and dataset.streaming:
        held_out = frozenset[int]()
        if carve and dataset.val_size:
            checks = RowChecks(dataset.cot_type, REMEMBERED_OF_STREAM)
            stream = _parse(rows, opened.source, dataset.cot_type, prefix, checks)
            held_out = _held_out((_key(example, dataset.seed) for example in stream), dataset, split)
            _warn(prefix, checks)
        return ExampleStream(rows, opened.source, dataset, prefix, held_out)
    warn = split != "validation" or not carve  # else they are the rows of train, which are checked there
    all_rows = _not_empty(_read(rows, opened.source, dataset.cot_type, prefix, warn), dataset.name, split)
    if carve:
        all_rows = _carved(all_rows, dataset, split)
    return _subset(all_rows, dataset, split)


def _rows_of(opened: Opened, name: str, split: str) -> tuple[Rows, str]:
    """The raw rows of a split, and the prefix of their ids."""
    short = Path(name).stem if opened.source is OWN else opened.source.name
    if split in opened.splits:
        return opened.splits[split], f"{short}/{split}"
    meant_as = "test" if opened.source.whole_is_test else "train"
    if opened.whole is not None and split == meant_as:
        return opened.whole, f"{short}/{split}"
    has = ", ".join(opened.splits) if opened.whole is None else f"one part, which is used as {meant_as}"
    raise DataError(
        f"data set {name} ({opened.place}) has no {split} split; it has {has}",
        "add a file of that name (train.jsonl, validation.jsonl, test.jsonl in one folder), or choose another set",
    )


def _read(rows: Rows, source: Source, cot_type: str, prefix: str, warn: bool = True) -> list[Example]:
    """All rows as examples; with `warn` what is odd about them is logged."""
    checks = RowChecks(cot_type)
    examples = list(track(_parse(rows, source, cot_type, prefix, checks if warn else None), f"reading {prefix}"))
    _warn(prefix, checks)
    return examples


def _parse(
    rows: Rows, source: Source, cot_type: str, prefix: str, checks: RowChecks | None = None
) -> Iterator[Example]:
    for number, (where, row) in enumerate(rows):
        if isinstance(row.get("id"), (dict, list, tuple)):
            kind = type(row["id"]).__name__
            raise DataError(f"{where}: field 'id' is a {kind}, neither text nor a number", "give it an id, or none")
        example = Example(f"{prefix}/{number}", *source.parse(row, where, cot_type))
        if checks is not None:
            checks.add(where, row, example, any_fields=source is not OWN)
        yield example


def _warn(prefix: str, checks: RowChecks) -> None:
    for message in checks.messages():
        log.warning("%s: %s", prefix, message)


def _key(example: Example, seed: int) -> int:
    return stable_hash(" ".join(example.question.split()), f"val{seed}")


def _held_out(hashes: Iterable[int], dataset: "DatasetConfig", split: str) -> frozenset[int]:
    """The hashes of the validation questions: the smallest ones, at most a tenth of all; too few are told with them.

    At most twenty questions are remembered for each that is held out, however many there are.
    """
    keys, enough = set[int](), 10 * dataset.val_size
    for key in hashes:
        keys.add(key)
        if len(keys) == 2 * enough:
            keys = set(heapq.nsmallest(enough, keys))
    count = min(dataset.val_size, max(1, len(keys) // 10)) if len(keys) > 1 else 0
    if count < dataset.val_size and split == "validation":
        log.warning("%s: %d of the asked %d validation examples are held out of %d training questions",
                    dataset.name, count, dataset.val_size, len(keys))  # fmt: skip
    return frozenset(heapq.nsmallest(count, keys))


def _carved(examples: list[Example], dataset: "DatasetConfig", split: str) -> list[Example]:
    if dataset.val_size == 0:
        if split == "train":
            return examples
        raise DataError(
            f"data set {dataset.name} has no validation split and dataset.val_size is 0",
            "set dataset.val_size to hold training examples out",
        )
    if split == "validation" and len({_key(example, dataset.seed) for example in examples[:100]}) < 2:
        raise DataError(
            f"data set {dataset.name}: the validation split is empty: no question can be held out of a single one",
            "give more questions, a validation file, or set dataset.val_size=0",
        )
    keys = [_key(example, dataset.seed) for example in examples]
    held_out = _held_out(keys, dataset, split)
    if split == "train":
        return [example for example, key in zip(examples, keys, strict=True) if key not in held_out]
    first: dict[int, Example] = {}  # a repeated question is kept once
    for example, key in zip(examples, keys, strict=True):
        if key in held_out:
            first.setdefault(key, example)
    return _not_empty(list(first.values()), dataset.name, split)


def _subset(examples: list[Example], dataset: "DatasetConfig", split: str) -> list[Example]:
    """Train only: the first subset_size of a seeded permutation, so that a larger subset contains a smaller one."""
    if split != "train" or dataset.subset_size is None:
        return examples
    if dataset.subset_size > len(examples):
        log.warning("%s: dataset.subset_size is %d, the training set has %d examples: all are used",
                    dataset.name, dataset.subset_size, len(examples))  # fmt: skip
    order = list(range(len(examples)))
    random.Random(f"{dataset.seed}/subset").shuffle(order)
    return [examples[i] for i in order[: dataset.subset_size]]


def _not_empty(examples: Sized, name: str, split: str) -> Sized:
    if not len(examples):
        raise DataError(f"data set {name}: the {split} split is empty", "an empty set trains and measures nothing")
    return examples


def _check_cot_type(dataset: "DatasetConfig", only: str | None) -> None:
    if only is not None and dataset.cot_type != only:
        raise DataError(
            f"data set {dataset.name} has steps of the type {only!r}, dataset.cot_type is {dataset.cot_type!r}",
            f"set dataset.cot_type={only}, or choose the data set of the other type",
        )
