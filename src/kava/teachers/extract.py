"""`kava extract`: a data set through a teacher into a store, shard by shard; what is there already is kept.

A shard's bytes follow from the manifest and the batch size alone: a run that is killed and started again leaves what an
undisturbed one leaves. The teacher's passes go on while a thread copies, hashes and writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.compress import Compressor, Samples, make_compressor
from kava.compress.base import gather
from kava.compress.choose import sample_positions
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.data.progress import progress_bar
from kava.errors import CheckpointError, RunError
from kava.files import PARTIAL, sole_owner, write_json
from kava.teachers.background import Background, Sent
from kava.teachers.base import KVShape, Teacher, TeacherKV, TeacherWants
from kava.teachers.manifest import MANIFEST, RAW, Manifest, encoded_hash, read_manifest
from kava.teachers.shards import SIZE, Entry, Shard, ShardWriter, Torn, parts, shard_name
from kava.teachers.store import INDEX, missing_shards, write_index

Rows = Sequence[Encoded]


@dataclass(frozen=True)
class Order:
    """What of the teacher is to be stored. method: raw, or the compressor that chooses `target_len` columns."""

    method: str = RAW
    target_len: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    with_importance: bool = False
    with_cue: bool = False
    examples_per_shard: int = 200

    @property
    def compressor(self) -> Compressor | None:
        return None if self.method == RAW else make_compressor(self.method, **self.settings)

    def manifest(self, shape: KVShape, num_examples: int, **facts: Any) -> Manifest:
        """`facts`: teacher, tokenizer, data and versions; none of them moves a size."""
        compressor = self.compressor
        return Manifest(
            **{"teacher": {}, "tokenizer": "", "data": {}, **facts},
            shape=shape,
            dtype=self.dtype,
            method=self.method,
            settings={} if compressor is None else asdict(compressor),  # type: ignore[call-overload]
            target_len=self.target_len,
            with_importance=self.with_importance,
            with_cue=self.with_cue,
            num_examples=num_examples,
            examples_per_shard=self.examples_per_shard,
        )


@dataclass(frozen=True)
class Done:
    """What a call has done: shards written and left as they were, those of other tasks still missing, bytes written."""

    written: int
    kept: int
    missing: int
    bytes: int


def stored_columns(encoded: Rows, order: Order, chunk: int = 1024) -> np.ndarray:
    """How many columns of each example will be stored; known before any pass."""
    compressor, keep = order.compressor, order.target_len
    found = []
    for start in range(0, len(encoded), chunk):
        rows = encoded[start : start + chunk]
        length = np.array([len(one.cot) for one in rows])
        if compressor is not None and keep is not None:
            mask = np.arange(max(length.max(), 1)) < length[:, None]
            result = np.zeros_like(mask)
            result[mask] = list(chain.from_iterable(one.result for one in rows))
            samples = Samples(torch.zeros(len(rows), dtype=torch.long), torch.from_numpy(result))
            length = compressor.count(torch.from_numpy(mask), keep, samples).numpy()
        found.append(length)
    return np.concatenate(found)


def shard_bytes(manifest: Manifest, stored: np.ndarray) -> np.ndarray:
    """Bytes of tensors in each shard: per example 2 L H D T numbers, and what goes with them. Headers not counted."""
    one, none = (_example_bytes(manifest, count) for count in (1, 0))
    each = none + (one - none) * stored.astype(np.int64)
    return np.add.reduceat(each, range(0, len(each), manifest.examples_per_shard))


def _example_bytes(manifest: Manifest, count: int) -> int:
    return sum(SIZE[dtype] * prod(shape) for dtype, shape in parts(manifest, count).values())


def extract(
    teacher: Teacher,
    device: torch.device,
    encoded: Rows,
    manifest: Manifest,
    folder: str | Path,
    batch_size: int = 16,
    task: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Done:
    """Writes the shards k with k % n == i of `task` = (i, n) that are not there yet; the last task adds the index."""
    folder = Path(folder)
    order = _order_of(manifest)
    stored = stored_columns(encoded, order)
    mine = range(task[0], manifest.num_shards, task[1])
    with _claimed(folder, manifest, task, mine):
        sizes = shard_bytes(manifest, stored)
        _refuse_full_disk(folder, int(sizes[missing_shards(folder, manifest)].sum()))
        todo = [k for k in mine if not _whole(folder, manifest, k)]
        reader = _Reader(teacher, device, manifest, order)
        with Background() as later, _Opened(later) as opened:
            for k in progress_bar(todo, "extract (shards)", progress):
                rows = [encoded[n] for n in manifest.rows(k)]
                counts = stored[manifest.rows(k).start : manifest.rows(k).stop].tolist()
                entries = [
                    Entry(one.id, len(one.cot), count, encoded_hash(one)) for one, count in zip(rows, counts, strict=True)
                ]
                writer = opened(ShardWriter(folder, manifest, k, entries))
                for start in range(0, len(rows), batch_size):
                    part = rows[start : start + batch_size]
                    later(_store, writer, start, counts[start : start + batch_size], reader(part))
                later(writer.finish)
        missing = missing_shards(folder, manifest)
        if not missing and (todo or not (folder / INDEX).is_file()):
            write_index(folder, manifest)
    written = sum((folder / shard_name(manifest, k)).stat().st_size for k in todo)
    return Done(len(todo), len(mine) - len(todo), len(missing), written)


class _Reader:
    """Batches through the teacher, down to what is stored."""

    def __init__(self, teacher: Teacher, device: torch.device, manifest: Manifest, order: Order):
        self.teacher, self.device, self.manifest = teacher, device, manifest
        self.compressor, self.keep = order.compressor, order.target_len
        looks = self.compressor is not None and self.compressor.needs_importance
        self.wants = TeacherWants(manifest.with_importance or looks, manifest.with_cue)
        self.collate = Collator(pad_token_id=0)  # to the right; a pad is never looked at
        self._streams: dict[torch.device, Any] = {}

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Sent:
        """k, v [B, L, H, C, D], importance [B, L, H, C], columns [B, C], cue [B, L, E], sound [B]; C as wide as needed."""
        batch = {name: value.to(self.device) for name, value in self.collate(rows).items()}
        seen = self.teacher(batch, self.wants)
        manifest, mask = self.manifest, batch["cot_mask"]
        dtype = getattr(torch, manifest.dtype)
        found = {"k": torch.stack(seen.keys, 1), "v": torch.stack(seen.values, 1)}
        if manifest.with_importance and seen.importance is not None:
            found["importance"] = torch.stack(seen.importance, 1)[..., None]
        if self.compressor is None:
            columns, real = torch.arange(mask.shape[1], device=mask.device).expand_as(mask), mask
        else:
            columns, real = self._choose(batch, seen)
            found = {name: _at(entries, columns, real) for name, entries in found.items()}
        out = {name: entries.to(dtype) for name, entries in found.items() if name != "importance"}
        sound = [(part.isfinite() | ~real[:, None, None, :, None]).flatten(1).all(1) for part in out.values()]
        if "importance" in found:
            out["importance"] = found["importance"][..., 0].float()
        if manifest.with_cue and seen.cue is not None:
            out["cue"] = seen.cue.to(dtype)
            sound.append(out["cue"].isfinite().flatten(1).all(1))
        return Sent({**out, "columns": columns.int(), "sound": torch.stack(sound).all(0)}, self._streams)

    def _choose(self, batch: dict[str, Tensor], seen: TeacherKV) -> tuple[Tensor, Tensor]:
        assert self.compressor is not None and self.keep is not None
        samples = Samples(batch["example_id"], batch["cot_result"])
        looked = seen.importance if self.compressor.needs_importance else None
        index, kept = sample_positions(
            self.compressor, seen.keys, seen.values, looked, batch["cot_mask"], self.keep, samples
        )
        return index[:, 0], kept[:, 0]


def _at(entries: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """entries [B, L, H, N, D] at columns [B, C] -> [B, L, H, C, D]."""
    layers, heads = entries.shape[1:3]
    wide = [part[:, None].expand(-1, layers * heads, -1) for part in (index, kept)]
    return gather(entries.flatten(1, 2), *wide).unflatten(1, (layers, heads))


def _store(writer: ShardWriter, start: int, counts: Sequence[int], sent: Sent) -> None:
    """Cuts a batch into examples and writes them; runs beside the next pass."""
    host = sent.arrive()
    arrays = {name: _array(tensor) for name, tensor in host.items() if name != "sound"}
    for b, count in enumerate(counts):
        entry = writer.entries[start + b]
        if not host["sound"][b]:
            raise RunError(
                f"example {entry.id}: the teacher's keys, values or hidden states are not finite in {writer.manifest.dtype}",
                "store them as bfloat16 or float32 (--dtype), or look at the teacher's weights",
            )
        cut = {name: array[b] if name == "cue" else array[b][..., :count, :] for name, array in arrays.items()
               if name in ("k", "v", "cue")}  # fmt: skip
        cut |= {name: arrays[name][b][..., :count] for name in ("columns", "importance") if name in arrays}
        writer.add(start + b, cut)


def _array(tensor: Tensor) -> np.ndarray:
    """numpy knows no bfloat16: two bytes are two bytes."""
    return (tensor.view(torch.int16) if tensor.dtype.itemsize == 2 else tensor).numpy()


class _Opened:
    """The shard that is being written: discarded when the block ends before it is finished."""

    def __init__(self, later: Background):
        self._later, self._writer = later, None

    def __call__(self, writer: ShardWriter) -> ShardWriter:
        self._writer = writer
        return writer
