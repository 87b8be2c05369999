"""`kava bench extract`: what it costs to store a teacher's keys and values, compared with only running the teacher.

forward  the library's own pass over the same batches: its attention, no cache, no logits
ours     our pass, which returns queries, keys and values of every layer
extract  batches are made, read, copied, hashed and written to disk, manifest and index included
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.backbone.model import Backbone, LatentModel
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.compress import make_compressor
from kava.config import LatentConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.infer.student import pick_device
from kava.lab.bench.reference import library_twin
from kava.lab.bench.sizes import ModelSizes
from kava.lab.bench.timing import hardware, ratios, take_turns
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.extract import extract, shard_bytes, stored_columns
from kava.teachers.live import LiveTeacher, shape_of
from kava.teachers.manifest import RAW, Manifest
from kava.teachers.store import StoredTeacher

ANSWER = 4  # tokens of the answer
WAYS = {"forward": "the library's forward pass", "ours": "our forward pass", "extract": "kava extract"}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of hidden states of size 1


@dataclass(frozen=True)
class ExtractBenchSizes(ModelSizes):
    """What is timed. dtype: of weights and store."""

    batches: int
    examples_per_shard: int
    dtype: str
    method: str
    target_len: int | None


def bench(
    sizes: ExtractBenchSizes, repeats: int, device: str = "cpu", folder: Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """The result as plain data; `differences` says where stored and live numbers differ, and then nothing is timed."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--folder {folder} is not a folder", "name one that exists")
    target = pick_device(device)
    model = sizes.model(LatentConfig(num_tokens=0, num_iterations=0))
    model = model.to(device=target, dtype=getattr(torch, sizes.dtype)).eval()
    examples = sizes.examples(sizes.batch_size * sizes.batches, ANSWER)
    batches = [
        {name: value.to(target) for name, value in Collator(0)(examples[i : i + sizes.batch_size]).items()}
        for i in range(0, len(examples), sizes.batch_size)
    ]
    manifest = _manifest(model, sizes, len(examples))
    tokens = sum(map(len, examples))
    with tempfile.TemporaryDirectory(dir=folder, prefix="kava-bench-") as scratch:
        ways = _ways(model, examples, batches, manifest, Path(scratch), sizes.batch_size)
        differences = _differences(ways, model, batches, manifest, Path(scratch), sizes.dtype)
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


def _manifest(model: Backbone, sizes: ExtractBenchSizes, count: int) -> Manifest:
    chosen = sizes.method != RAW
    settings = asdict(make_compressor(sizes.method)) if chosen else {}  # type: ignore[call-overload]
    return Manifest(
        teacher={"name": "random"},
        tokenizer="",
        shape=shape_of(model),
        dtype=sizes.dtype,
        method=sizes.method,
        settings=settings,
        target_len=sizes.target_len if chosen else None,
        with_importance=False,
        with_cue=False,
        data={},
        num_examples=count,
        examples_per_shard=sizes.examples_per_shard,
    )


def _ways(model: LatentModel, examples: list[Encoded], batches: list[dict[str, Tensor]], manifest: Manifest,
          scratch: Path, batch_size: int) -> dict[str, Callable[[], Any]]:  # fmt: skip
    teacher = LiveTeacher(model)
    twin = getattr(library_twin(model), model.family.decoder)
    ids = [torch.cat([batch[name] for name in ("question", "cot", "tail")], dim=1) for batch in batches]

    @torch.no_grad()
    def forward() -> list[Tensor]:
        return [twin(input_ids=rows, use_cache=False).last_hidden_state for rows in ids]

    @torch.no_grad()
    def ours() -> list[Tensor]:
        return [teacher_forced_pass(model, batch).out.hidden for batch in batches]

    def store() -> None:
        shutil.rmtree(scratch / "store", ignore_errors=True)
        extract(teacher, model.device, examples, manifest, scratch / "store", batch_size, progress=False)

    return {"forward": forward, "ours": ours, "extract": store}


def _differences(ways: dict[str, Callable[[], Any]], model: Backbone, batches: list[dict[str, Tensor]],
                 manifest: Manifest, scratch: Path, dtype: str) -> list[str]:  # fmt: skip
    """Both passes give the same hidden states, and the store gives back what the teacher gives, bit for bit."""
    lines = []
    gap = max(float((a - b).abs().max()) for a, b in zip(ways["forward"](), ways["ours"](), strict=True))
    if not gap <= TOLERANCE[dtype]:
        lines.append(f"hidden states of the two passes differ by {gap:.2g}")
    ways["extract"]()
    live, stored, wants = LiveTeacher(model), StoredTeacher(scratch / "store", progress=False), TeacherWants()
    same = all(_same(live(batch, wants), stored(batch, wants)) for batch in batches)
    return lines if same else [*lines, "stored keys and values are not the teacher's"]


def _same(live: TeacherKV, stored: TeacherKV) -> bool:
    """Equal at the stored columns; there is no padding."""
    pairs = zip([*live.keys, *live.values], [*stored.keys, *stored.values], strict=True)
    if stored.only is None:
        return all(torch.equal(a, b) for a, b in pairs)
    real = stored.only[:, None, :, None]
    return all(torch.equal(a.masked_fill(~real, 0), b) for a, b in pairs)
