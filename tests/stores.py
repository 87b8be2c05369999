"""Small teachers, texts and stores for the tests of `kava extract`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from kava.backbone.artifact import fingerprint
from kava.backbone.families import family_of
from kava.backbone.model import Backbone
from kava.compress import make_compressor
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.teachers.base import Teacher
from kava.teachers.extract import Done, extract
from kava.teachers.live import LiveTeacher
from kava.teachers.manifest import RAW, Manifest

LLAMA, BATCH, PER_SHARD = "llama-gqa", 3, 5
CPU = torch.device("cpu")
LENGTHS = (7, 0, 2, 9, 4, 1, 5, 12, 3, 8, 6, 2, 0, 10)  # tokens of each chain of thought


@cache
def teacher(family: str = LLAMA, seed: int = 0, dtype: torch.dtype = torch.float32) -> LiveTeacher:
    lm = zoo.causal_lm(family, seed, dtype)
    return LiveTeacher(Backbone(lm, family_of(lm.config, family)))


def texts(lengths: Sequence[int] = LENGTHS) -> list[Encoded]:
    """Random ids; about a third of each chain of thought carries a result."""
    made = []
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(i)

        def draw(count: int, generator: torch.Generator = generator) -> list[int]:
            return torch.randint(8, 50, (count,), generator=generator).tolist()

        result = (torch.rand(length, generator=generator) < 0.35).tolist()
        made.append(Encoded(f"set/train/{i}", draw(3 + i % 4), draw(length), result, [51, 52, 53], draw(1 + i % 3), 1))
    return made


def manifest(
    method: str = RAW, count: int = len(LENGTHS), taught_by: LiveTeacher | None = None, **fields: Any
) -> Manifest:
    taught_by = taught_by or teacher()
    settings = {} if method == RAW else asdict(make_compressor(method))
    given = {
        "teacher": {"name": "tiny", "weights": fingerprint(taught_by.model)},
        "tokenizer": "t",
        "shape": taught_by.model.kv_shape,
        "dtype": "float32",
        "target_len": None if method == RAW else 4,
        "with_importance": False,
        "with_cue": False,
        "data": {"name": "set"},
        "num_examples": count,
        "examples_per_shard": PER_SHARD,
    }
    return Manifest(method=method, settings=settings, **{**given, **fields})


def make(folder: Path, what: Manifest | None = None, taught_by: Teacher | None = None, **more: Any) -> Done:
    """A store of `texts`."""
    what = what or manifest()
    rows = texts()[: what.num_examples]
    return extract(taught_by or teacher(), CPU, rows, what, folder, **{"batch_size": BATCH, "progress": False, **more})


def batch(rows: Sequence[Encoded], side: str = "right") -> dict[str, Tensor]:
    return Collator(7, side)(rows)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not a lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".lock")}
