"""`kava bench extract`: what it costs to store a teacher's keys and values, compared with only running the teacher.

forward  the library's own pass over the same batches: its attention, no cache, no logits
ours     our pass, which returns queries, keys and values of every layer
extract  batches are made, read, copied, hashed and written to disk, manifest and index included
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.config import LatentConfig, load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.infer.student import pick_device
from kava.lab.bench.reference import ModelSizes, library_twin
from kava.lab.bench.timing import hardware, ratios, take_turns
from kava.progress import progress as progress_of
from kava.teachers.base import Batch, TeacherKV, TeacherWants
from kava.teachers.extract import extract, shard_bytes, stored_columns
from kava.teachers.live import LiveTeacher
from kava.teachers.manifest import RAW, Manifest
from kava.teachers.request import Request, manifest_of
from kava.teachers.store import StoredTeacher

ANSWER = 4  # tokens of the answer
WAYS = {"forward": "the library's forward pass", "ours": "our forward pass", "extract": "kava extract"}
TOLERANCE = {
    "float32": 1e-4,
    "bfloat16": 5e-2,
    "float16": 1e-2,
}  # of hidden states: the norm of their difference to their own


@dataclass(frozen=True)
class ExtractBenchSizes(ModelSizes):
    """What is timed. dtype: of weights and store."""

    batches: int
    examples_per_shard: int
    dtype: str
    method: str
    target_len: int | None


def bench(sizes: ExtractBenchSizes, repeats: int, device: str, folder: Path | None, progress: bool) -> dict[str, Any]:
    """The result as plain data; `differences` says where stored and live numbers differ, and then nothing is timed."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--folder {folder} is not a folder", "name one that exists")
    target, size = pick_device(device), sizes.batch_size
    with target:
        model = sizes.model(LatentConfig(num_tokens=0, num_iterations=0))
    model = model.to(dtype=getattr(torch, sizes.dtype)).eval()
    examples = sizes.examples(size * sizes.batches, ANSWER)
    batches = [
        {name: value.to(target) for name, value in Collator(0)(examples[i : i + size]).items()}
        for i in range(0, len(examples), size)
    ]
    keep = None if sizes.method == RAW else sizes.target_len
    request = Request(sizes.method, keep, sizes.dtype, examples_per_shard=sizes.examples_per_shard)
    manifest = manifest_of(request, load_recipe("explicit_embedded"), model, len(examples), sizes.dtype)
    tokens = sum(map(len, examples))
    with tempfile.TemporaryDirectory(dir=folder, prefix="kava-bench-") as scratch:
        teacher, store = LiveTeacher(model), Path(scratch) / "store"
        ids = [torch.cat([batch[name] for name in ("question", "cot", "tail")], dim=1) for batch in batches]
        ways: dict[str, Callable[[], Any]] = {
            "forward": partial(_forward, getattr(library_twin(model), model.family.decoder), ids),
            "ours": partial(_ours, model, batches),
            "extract": partial(_extract, teacher, target, examples, manifest, store, size),
        }
        with progress_of("stored and live numbers compared", show=progress):
            differences = _differences(ways, teacher, store, batches, TOLERANCE[sizes.dtype])
        result: dict[str, Any] = {
            "hardware": hardware(target),
            "sizes": asdict(sizes),
            "tokens": tokens,
            "bytes": int(shard_bytes(manifest, stored_columns(examples, manifest)).sum()),
            "repeats": repeats,
            "equal": not differences,
            "differences": differences,
        }
        if differences:
            return result
        times = take_turns(ways, repeats, target, progress=progress)
    result["ways"] = {}
    for name, title in WAYS.items():
        facts = times[name].facts()
        result["ways"][name] = {"title": title, **facts, "tokens_per_second": tokens / facts["seconds"]}
    return result | ratios(times, "extract")


@torch.no_grad()
def _forward(decoder: Any, ids: list[Tensor]) -> list[Tensor]:
    return [decoder(input_ids=rows, use_cache=False).last_hidden_state for rows in ids]


@torch.no_grad()
def _ours(model: LatentModel, batches: list[Batch]) -> list[Tensor]:
    return [teacher_forced_pass(model, batch).out.hidden for batch in batches]


def _extract(teacher: LiveTeacher, device: torch.device, examples: list[Encoded], manifest: Manifest, store: Path,
             batch_size: int) -> None:  # fmt: skip
    shutil.rmtree(store, ignore_errors=True)
    extract(teacher, device, examples, manifest, store, batch_size, progress=False)


def _differences(
    ways: dict[str, Callable[[], Any]], teacher: LiveTeacher, store: Path, batches: list[Batch], tolerance: float
) -> list[str]:
    """Lines unless both passes give the same hidden states, and the store gives what the teacher gives, bit for bit."""
    pairs = zip(ways["ours"](), ways["forward"](), strict=True)
    gap = max(float((own.float() - wanted.float()).norm() / wanted.float().norm()) for own, wanted in pairs)
    lines = [] if gap <= tolerance else [f"hidden states of the two passes differ by {gap:.2g} of their norm"]
    ways["extract"]()
    stored, wants = StoredTeacher(store, progress=False), TeacherWants()
    same = all(_same(teacher(batch, wants), stored(batch, wants)) for batch in batches)
    return lines if same else [*lines, "stored keys and values are not the teacher's"]


def _same(live: TeacherKV, stored: TeacherKV) -> bool:
    """Equal at the stored columns; there is no padding."""
    pairs = zip([*live.keys, *live.values], [*stored.keys, *stored.values], strict=True)
    if stored.only is None:
        return all(torch.equal(a, b) for a, b in pairs)
    real = stored.only[:, None, :, None]
    return all(torch.equal(a.masked_fill(~real, 0), b) for a, b in pairs)
