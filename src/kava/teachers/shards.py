"""One shard of a teacher store: a safetensors file whose layout is known before its tensors.

Tensors of the n-th example of the data set:

    n.columns     int32   [C]           the stored tokens of its chain of thought, counted from 0
    n.importance  float32 [L, H, C]     if the store has it
    n.k, n.v              [L, H, C, D]
    n.cue                 [L, E]        if the store has it
    n.question            [L, H*D]      if the store has it

The header's one metadata entry repeats the manifest and lists, per example, id, number of CoT tokens, number of stored
ones, hash of the ids that were read, and the sha256 of all this and of its tensors. A reader rebuilds the header from
that list; any different byte is damage. The file is not written by the safetensors library, because hashes precede the
hashed data and the bytes must not depend on the library's version.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kava.data.example import stable_hash
from kava.errors import CheckpointError, RunError
from kava.files import open_partial, replace_file
from kava.teachers.manifest import Manifest, from_facts

TAG = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}
OPTIONAL = ("importance", "cue", "question")  # with_... in a manifest
WITHOUT_COLUMNS = ("cue", "question")  # one entry per layer, not per token
AGAIN = "delete it and start kava extract again: only what is missing is written"
LONGEST_HEADER = 100_000_000  # safetensors' own limit


class Torn(CheckpointError):
    """A truncated or damaged shard, which can be written again."""


@dataclass(frozen=True)
class Entry:
    """The header's entry of an example. `tokens` is the hash of the ids that the teacher read."""

    id: str
    length: int
    stored: int
    tokens: str
    sha256: str = 64 * "0"

    @property
    def key(self) -> int:
        """The hash of its id, as in a batch and in the index."""
        return stable_hash(self.id)

    def digest(self) -> Any:
        return hashlib.sha256(f"{self.id}\n{self.length}\n{self.stored}\n{self.tokens}\n".encode())


class ShardLayout(NamedTuple):
    """The header, the start of each tensor [example, part] in the file, and the file's size."""

    head: bytes
    starts: np.ndarray
    size: int


def shard_name(manifest: Manifest, shard: int) -> str:
    return f"kv-{shard:05d}-of-{manifest.num_shards:05d}.safetensors"


def parts(manifest: Manifest, stored: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor of an example with `stored` columns."""
    shape = manifest.shape
    heads = (shape.num_layers, shape.num_heads, stored)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"columns": ("int32", (stored,))}
    if manifest.with_importance:
        tensors["importance"] = ("float32", heads)
    tensors["k"] = tensors["v"] = (manifest.dtype, (*heads, shape.head_size))
    if manifest.with_cue:
        tensors["cue"] = (manifest.dtype, (shape.num_layers, shape.hidden_size))
    if manifest.with_question:
        tensors["question"] = (manifest.dtype, (shape.num_layers, shape.layer_size))
    return tensors


def layout(manifest: Manifest, shard: int, entries: Sequence[Entry]) -> ShardLayout:
    """The layout of a shard's file. Wide types come first, so that each tensor starts at a multiple of its item size."""
    facts = {"manifest": manifest.facts(), "examples": [astuple(entry) for entry in entries]}
    header: dict[str, Any] = {"__metadata__": {"kava": json.dumps(facts, separators=(",", ":"))}}
    tensors = [list(parts(manifest, entry.stored).items()) for entry in entries]
    starts = np.zeros((len(entries), len(parts(manifest, 0))), dtype=np.int64)
    at = 0
    for size in (4, 2):
        for row, n in enumerate(manifest.rows(shard)):
            for number, (name, (dtype, shape)) in enumerate(tensors[row]):
                if SIZE[dtype] == size:
                    end = at + size * prod(shape)
                    header[f"{n}.{name}"] = {"dtype": TAG[dtype], "shape": shape, "data_offsets": [at, end]}
                    starts[row, number], at = at, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return ShardLayout(head, starts + len(head), len(head) + at)


class ShardWriter:
    """Writes a shard atomically: a temporary file in its folder is renamed when complete.

    `add` each example once, in any order, then `finish`; `discard` at any time.
    """

    def __init__(self, folder: Path, manifest: Manifest, shard: int, entries: Sequence[Entry]):
        self.path = folder / shard_name(manifest, shard)
        self.manifest, self.shard, self.entries = manifest, shard, list(entries)
        self.layout = layout(manifest, shard, entries)
        self.finished = False
        self._left = set(range(len(entries)))
        self._file, self._partial = open_partial(self.path)

    def add(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the tensors of the row-th example; types that numpy lacks as integers of their size."""
        entry = self.entries[row]
        digest = entry.digest()
        for number, (name, (dtype, shape)) in enumerate(parts(self.manifest, entry.stored).items()):
            array = np.ascontiguousarray(arrays[name])
            if array.shape != shape or array.itemsize != SIZE[dtype]:
                raise ValueError(f"{entry.id}: {name} is {array.dtype} {array.shape}, the shard has room for {shape}")
            content = array.data.cast("B") if array.size else b""
            digest.update(content)
            self._file.seek(int(self.layout.starts[row, number]))
            self._file.write(content)
        self.entries[row] = replace(entry, sha256=digest.hexdigest())
        self._left.remove(row)

    def finish(self) -> None:
        if self._left:
            raise ValueError(f"{self.path.name}: {len(self._left)} examples were never added")
        self._file.seek(0)
        self._file.write(layout(self.manifest, self.shard, self.entries).head)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        try:
            replace_file(self._partial, self.path)
        except FileNotFoundError as error:
            raise RunError(
                f"{self._partial.name} was removed while it was written",
                "is another kava extract at work on the same shards?",
            ) from error
        self.finished = True

    def discard(self) -> None:
        """Deletes an unfinished shard; a finished one stays."""
        with suppress(OSError):  # unwritten data is discarded in any case
            self._file.close()
        self._partial.unlink(missing_ok=True)


class Shard:
    """A finished shard with a checked header. Each process maps the file when it reads the first example.

    An example's hash is checked when this object first reads it.
    """

    def __init__(self, folder: Path, manifest: Manifest, shard: int):
        self.path = folder / shard_name(manifest, shard)
        self.manifest = manifest
        head, facts = _read_head(self.path)
        if difference := manifest.first_difference(from_facts(facts["manifest"], self.path)):
            raise CheckpointError(
                f"{self.path} belongs to another teacher store: {difference}", "keep each store in a folder of its own"
            )
        try:
            self.entries = [Entry(*fields) for fields in facts["examples"]]
            expected = layout(manifest, shard, self.entries)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _damaged(self.path, f"its list of examples is not one ({error})") from error
        if expected.head != head or len(self.entries) != len(manifest.rows(shard)):
            raise _damaged(self.path, "its header is not that of its examples")
        size = self.path.stat().st_size
        if size != expected.size:
            raise Torn(f"{self.path} is torn: {size} bytes of {expected.size}", AGAIN)
        self._starts, self._size = expected.starts, size
        self._checked = np.zeros(len(self.entries), dtype=bool)
        self._bytes: Tensor | None = None

    def read(self, row: int) -> dict[str, Tensor]:
        """The tensors of the row-th example, as views of the mapped file."""
        if self._bytes is None:
            self._bytes = torch.from_file(str(self.path), shared=False, size=self._size, dtype=torch.uint8)
        entry, tensors = self.entries[row], {}
        digest = None if self._checked[row] else entry.digest()
        for number, (name, (dtype, shape)) in enumerate(parts(self.manifest, entry.stored).items()):
            start = int(self._starts[row, number])
            content = self._bytes[start : start + SIZE[dtype] * prod(shape)]
            if digest is not None:
                digest.update(content.numpy().data)
            tensors[name] = content.view(getattr(torch, dtype)).view(shape)
        if digest is not None and digest.hexdigest() != entry.sha256:
            raise _damaged(self.path, f"example {entry.id} does not have the hash it was written with")
        self._checked[row] = True
        return tensors


def _read_head(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The header's bytes and its metadata entry."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) == 8 and length <= LONGEST_HEADER:
                head += file.read(length)
    except FileNotFoundError as error:
        raise Torn(f"{path} is missing", "start kava extract again: only what is missing is written") from error
    if len(head) != 8 + length:
        raise Torn(f"{path} is torn: it ends within its header", AGAIN)
    try:
        facts = json.loads(json.loads(head[8:])["__metadata__"]["kava"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(facts, dict) or "manifest" not in facts:
        raise _damaged(path, "its header names no manifest")
    return head, facts


def _damaged(path: Path, what: str) -> Torn:
    return Torn(f"{path} is damaged: {what}", AGAIN)
