"""The description of a teacher store: manifest.json, repeated in every shard and compared field by field."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kava.align.rope import Rotary
from kava.backbone.load import PROBES
from kava.compress import Compressor, make_compressor
from kava.config.typed_file import Count, Record, checked
from kava.data.encode import Encoded
from kava.errors import CheckpointError
from kava.teachers.base import KVShape

MANIFEST = "manifest.json"
SCHEMA = 2
NEW_IN_2 = ("own_tokenizer", "prompt", "rotary", "with_question")  # fields
RAW = "raw"
DTYPES = ("float32", "bfloat16", "float16")


class ManifestFacts(Record):
    """The types of what manifest.json and every shard's header say."""

    teacher: dict[str, Any]
    tokenizer: str
    shape: dict[str, Count]
    dtype: Literal["float32", "bfloat16", "float16"]
    method: str
    settings: dict[str, Any]
    target_len: Count | None
    with_importance: bool
    with_cue: bool
    data: dict[str, Any]
    num_examples: Count
    examples_per_shard: Annotated[int, Field(ge=1)]
    versions: dict[str, Any] = Field({})
    own_tokenizer: bool = False
    prompt: str = "{question}"
    rotary: dict[str, Any] | None = None
    with_question: bool = False


@dataclass(frozen=True)
class Manifest:
    """The contents of a store; shards fit together if everything but `versions` is equal.

    teacher: name, revision, quantization and dtype of the model, and `weights`, a hash of all of them.
    method: raw (every CoT column) or the compressor that chose `target_len` columns per sample, with its settings.
    data: the recipe's dataset keys that select examples, the splits, and the hash of their text.
    own_tokenizer: a teacher of a mixture, with its own tokens and `prompt` around the question; `rotary`: the rotary
    embedding of its keys (inv_freq, factor, limit), None with learned positions.
    """

    teacher: dict[str, Any]
    tokenizer: str
    shape: KVShape
    dtype: str
    method: str
    settings: dict[str, Any]
    target_len: int | None
    with_importance: bool
    with_cue: bool
    data: dict[str, Any]
    num_examples: int
    examples_per_shard: int
    versions: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    own_tokenizer: bool = False
    prompt: str = "{question}"
    rotary: dict[str, Any] | None = None
    with_question: bool = False

    @property
    def num_shards(self) -> int:
        return -(-self.num_examples // self.examples_per_shard)

    @property
    def compressor(self) -> Compressor | None:
        """The compressor that chose the stored columns; None: all are stored."""
        return None if self.method == RAW else make_compressor(self.method, **self.settings)

    def rows(self, shard: int) -> range:
        """The positions in the dataset of the examples in a shard."""
        first = shard * self.examples_per_shard
        return range(first, min(first + self.examples_per_shard, self.num_examples))

    def facts(self) -> dict[str, Any]:
        """The compared fields as plain data: all but the versions."""
        absent = {"versions", *(NEW_IN_2 if self.schema == 1 else ())}
        return {name: value for name, value in asdict(self).items() if name not in absent}

    def first_difference(self, other: "Manifest") -> str | None:
        """The first different field with its two values: "teacher.weights is ... here, ... there"."""
        return _first_difference(self.facts(), other.facts())


def _first_difference(left: dict[str, Any], right: dict[str, Any], prefix: str = "") -> str | None:
    for name in [*left, *(name for name in right if name not in left)]:
        a, b = left.get(name), right.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if difference := _first_difference(a, b, f"{prefix}{name}."):
                return difference
        elif a != b:
            return f"{prefix}{name} is {a!r} here, {b!r} there"
    return None


def from_facts(facts: Any, where: Path) -> Manifest:
    """The manifest from plain data; a CheckpointError if it is not one."""
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema not in (1, SCHEMA):
        raise CheckpointError(
            f"{where}: teacher store of schema {schema!r}, this version reads up to {SCHEMA}", "update kava"
        )
    names = {field.name for field in fields(Manifest)} - set(NEW_IN_2 if schema == 1 else ())
    if missing := sorted(names - {"versions"} - set(facts)) + sorted(set(facts) - names):
        raise CheckpointError(f"{where}: fields missing or unknown: {', '.join(missing)}", "the file is damaged")
    checked(facts, ManifestFacts, str(where), "the file is damaged", CheckpointError)
    try:
        return Manifest(**(facts | {"shape": KVShape(**facts["shape"])}))
    except TypeError as error:
        raise CheckpointError(f"{where}: not a manifest ({error})", "the file is damaged") from error


def read_manifest(folder: str | Path) -> Manifest:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a teacher store: it has no {MANIFEST}", "make one with kava extract")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error})", "delete it and start kava extract again: whole shards are kept"
        ) from error
    return from_facts(facts, path)


def plain(rotary: Rotary) -> dict[str, Any]:
    """A rotary embedding as plain data for a manifest."""
    return {"inv_freq": rotary.inv_freq.tolist(), "factor": rotary.factor, "limit": rotary.limit}


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of the vocabulary and of the tokens of some texts."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    split = [list(tokenizer(text)["input_ids"]) for text in PROBES]
    return hashlib.sha256(json.dumps([vocabulary, split]).encode()).hexdigest()


def tokens_hash(question: Iterable[int], cot: Iterable[int], tail: Iterable[int]) -> str:
    """A hash of the ids that the teacher read, 16 hexadecimal digits."""
    text = "|".join(" ".join(map(str, part)) for part in (question, cot, tail))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def encoded_hash(row: Encoded) -> str:
    return tokens_hash(row.question, row.cot, [*row.cue, *row.answer, row.eos])
