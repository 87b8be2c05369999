"""`kava extract`: writes a teacher's keys and values for a dataset into a store, shard by shard; existing shards are kept.

A shard's bytes depend only on the manifest and the batch size: a run that is killed and restarted writes the same files
as an uninterrupted one. A background thread copies, hashes and writes during the teacher's passes.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.compress import Samples
from kava.compress.base import gather
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.errors import CheckpointError, RunError
from kava.files import PARTIAL, make_folder, sole_owner, write_json
from kava.outputs import check_folder
from kava.progress import track
from kava.teachers.background import Sent, background
from kava.teachers.base import Teacher, TeacherWants
from kava.teachers.manifest import MANIFEST, Manifest, encoded_hash, read_manifest
from kava.teachers.shards import SIZE, WITHOUT_COLUMNS, Entry, Shard, ShardWriter, Torn, parts, shard_name
from kava.teachers.store import INDEX, missing_shards, write_index

Rows = Sequence[Encoded]
PATIENCE = 60.0  # seconds that tasks wait for each other when they start together
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """Result of `extract`: shards written, shards kept, shards of other tasks still missing, bytes written."""

    written: int
    kept: int
    missing: int
    bytes: int


def stored_columns(encoded: Rows, manifest: Manifest, chunk: int = 1024) -> np.ndarray:
    """The number of stored columns of each example, known before any pass."""
    compressor, keep = manifest.compressor, manifest.target_len
    counts = []
    for start in range(0, len(encoded), chunk):
        rows = encoded[start : start + chunk]
        length = np.array([len(row.cot) for row in rows])
        if compressor is not None and keep is not None:
            mask = np.arange(max(length.max(), 1)) < length[:, None]
            result = np.zeros_like(mask)
            result[mask] = list(chain.from_iterable(row.result for row in rows))
            samples = Samples(torch.zeros(len(rows), dtype=torch.long), torch.from_numpy(result))
            length = compressor.count(torch.from_numpy(mask), keep, samples).numpy()
        counts.append(length)
    return np.concatenate(counts)


def shard_bytes(manifest: Manifest, stored: np.ndarray) -> np.ndarray:
    """Bytes of tensors in each shard, without headers: per example 2 L H D T numbers, and its other tensors."""
    with_column, without = (
        sum(SIZE[dtype] * prod(shape) for dtype, shape in parts(manifest, count).values()) for count in (1, 0)
    )
    each = without + (with_column - without) * stored.astype(np.int64)
    return np.add.reduceat(each, range(0, len(each), manifest.examples_per_shard))


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
    """Writes the missing shards k with k % n == i of `task` = (i, n); the last task adds the index."""
    folder = Path(folder)
    own_shards = range(task[0], manifest.num_shards, task[1])
    with _claimed(folder, manifest, task, own_shards):
        stored = stored_columns(encoded, manifest)
        todo = [k for k in own_shards if not _is_complete(folder, manifest, k)]
        _refuse_full_disk(folder, manifest, stored)
        reader = _TeacherReader(teacher, device, manifest)
        jobs = [(k, start) for k in todo for start in range(0, len(manifest.rows(k)), batch_size)]
        opened: list[ShardWriter] = []
        order: list[int] = []
        try:
            with background() as later:
                for k, start in track(jobs, f"teacher (batches of {batch_size})", unit="batches", show=progress):
                    if start == 0:
                        opened = [writer for writer in opened if not writer.finished]
                        opened.append(_begin(folder, manifest, k, encoded, stored))
                        order = _by_length(encoded, manifest.rows(k))
                    places = order[start : start + batch_size]
                    part = [encoded[manifest.rows(k)[place]] for place in places]
                    later(_store, opened[-1], places, reader(part))
                    if start + batch_size >= len(order):
                        later(opened[-1].finish)
        finally:
            for writer in opened:
                writer.discard()
        missing = missing_shards(folder, manifest)
        if not missing and (todo or not (folder / INDEX).is_file()):
            write_index(folder, manifest)
    written = sum((folder / shard_name(manifest, k)).stat().st_size for k in todo)
    return Done(len(todo), len(own_shards) - len(todo), len(missing), written)


def _begin(folder: Path, manifest: Manifest, shard: int, encoded: Rows, stored: np.ndarray) -> ShardWriter:
    rows = manifest.rows(shard)
    pairs = zip((encoded[n] for n in rows), stored[rows.start : rows.stop].tolist(), strict=True)
    entries = [Entry(row.id, len(row.cot), count, encoded_hash(row)) for row, count in pairs]
    return ShardWriter(folder, manifest, shard, entries)


def _by_length(encoded: Rows, rows: range) -> list[int]:
    """The places of a shard's rows, longest first: rows of like lengths are read together, with little padding."""
    lengths = [len(encoded[n]) for n in rows]
    return sorted(range(len(rows)), key=lambda place: -lengths[place])


class _TeacherReader:
    """Runs batches through the teacher and selects what is stored."""

    def __init__(self, teacher: Teacher, device: torch.device, manifest: Manifest):
        self.teacher, self.device, self.manifest = teacher, device, manifest
        self.compressor, self.keep = manifest.compressor, manifest.target_len
        scored = self.compressor is not None and self.compressor.needs_importance
        self.wants = TeacherWants(
            manifest.with_importance or scored, manifest.with_cue, question="mean" if manifest.with_question else ""
        )
        self.collate = Collator(pad_token_id=0)  # right padding, which is masked
        self._streams: dict[torch.device, Any] = {}

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Sent:
        """k, v [B, L, H, C, D], importance [B, L, H, C], columns [B, C], cue [B, L, E], question [B, L, H*D], sound [B];
        C as wide as needed."""
        batch = {name: value.to(self.device) for name, value in self.collate(rows).items()}
        teacher = self.teacher(batch, self.wants)
        manifest, mask = self.manifest, batch["cot_mask"]
        dtype = getattr(torch, manifest.dtype)
        tensors = {"k": torch.stack(teacher.keys, 1), "v": torch.stack(teacher.values, 1)}
        if manifest.with_importance and teacher.importance is not None:
            tensors["importance"] = torch.stack(teacher.importance, 1)[..., None]
        if self.compressor is None or self.keep is None:
            columns, real = torch.arange(mask.shape[1], device=mask.device).expand_as(mask), mask
        else:
            samples = Samples(batch["example_id"], batch["cot_result"])
            scores = teacher.importance if self.compressor.needs_importance else None
            index, kept = self.compressor.choose(
                teacher.keys, teacher.values, scores, mask, self.keep, samples, per="sample"
            )
            columns, real = index[:, 0], kept[:, 0]
            tensors = {name: _at(entries, columns, real) for name, entries in tensors.items()}
        importance = tensors.pop("importance", None)
        tensors |= {name: part for name in WITHOUT_COLUMNS if (part := getattr(teacher, name)) is not None}
        out = {name: entries.to(dtype) for name, entries in tensors.items()}
        if importance is not None:
            out["importance"] = importance[..., 0].float()
        # a sum is not finite if one of its numbers is not
        sound = torch.stack([part.flatten(1).sum(1, dtype=torch.float32) for part in out.values()]).sum(0).isfinite()
        return Sent({**out, "columns": columns.int(), "sound": sound}, self._streams)


def _at(entries: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """entries [B, L, H, N, D] at columns [B, C] -> [B, L, H, C, D]."""
    layers, heads = entries.shape[1:3]
    wide = [part[:, None].expand(-1, layers * heads, -1) for part in (index, kept)]
    return gather(entries.flatten(1, 2), *wide).unflatten(1, (layers, heads))


def _store(writer: ShardWriter, places: Sequence[int], sent: Sent) -> None:
    """Splits a batch into the examples at `places` of the shard and writes them; runs during the next pass."""
    host = sent.arrive()
    sound = host.pop("sound").tolist()
    arrays = {name: _array(tensor) for name, tensor in host.items()}
    for b, is_finite in enumerate(sound):
        entry = writer.entries[places[b]]
        if not is_finite:
            raise RunError(
                f"example {entry.id}: the teacher's keys, values or hidden states are not finite in {writer.manifest.dtype}",
                "store them as bfloat16 or float32 (--dtype), or look at the teacher's weights",
            )
        shapes = {name: shape for name, (_, shape) in parts(writer.manifest, entry.stored).items()}
        writer.add(places[b], {name: array[b][tuple(map(slice, shapes[name]))] for name, array in arrays.items()})


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor as numpy; two-byte types as int16, since numpy has no bfloat16."""
    return (tensor.view(torch.int16) if tensor.dtype.itemsize == 2 else tensor).numpy()


@contextmanager
def _claimed(folder: Path, manifest: Manifest, task: tuple[int, int], own_shards: range) -> Iterator[None]:
    """Locks the folder for this task, writes or checks its manifest, and removes partial files.

    Other tasks may be running: only partial files of this task's own shards are removed.
    """
    check_folder("the store's folder", folder)
    make_folder(folder)
    with sole_owner(folder / f".lock-{task[0]}-of-{task[1]}"):
        with sole_owner(folder / ".lock", PATIENCE):
            own = {shard_name(manifest, k) for k in own_shards}
            for left in folder.glob(PARTIAL + "*"):
                name = left.name.removeprefix(PARTIAL)
                if name.rpartition("-")[0] in own or not name.startswith("kv-"):
                    left.unlink()
            _write_or_compare(folder, manifest)
        yield


def _write_or_compare(folder: Path, manifest: Manifest) -> None:
    if (folder / MANIFEST).is_file():
        if difference := read_manifest(folder).first_difference(manifest):
            raise CheckpointError(
                f"{folder} holds another teacher store: {difference}",
                "use the settings it was begun with, or another --output_dir",
            )
        return
    known = {shard_name(manifest, k) for k in range(manifest.num_shards)} | {INDEX}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
    if others:
        raise RunError(f"{folder} holds other files, such as {others[0]}", "choose another --output_dir")
    write_json(folder / MANIFEST, manifest.facts() | {"versions": manifest.versions})


def _is_complete(folder: Path, manifest: Manifest, shard: int) -> bool:
    """True for an existing shard whose header and size are right. A shard of another store is refused."""
    path = folder / shard_name(manifest, shard)
    if not path.is_file():
        return False
    try:
        Shard(folder, manifest, shard)
    except Torn as error:
        log.warning("%s; it is written again", error.message)
        path.unlink()
        return False
    return True


def _refuse_full_disk(folder: Path, manifest: Manifest, stored: np.ndarray) -> None:
    missing = missing_shards(folder, manifest)
    need = int(shard_bytes(manifest, stored)[np.array(missing, dtype=np.int64)].sum())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RunError(
            f"{folder}: {len(missing)} shards still need {need / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
            "choose another --output_dir, --dtype bfloat16, or --kv_method rkv --target_len 8",
        )
