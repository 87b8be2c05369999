"""The components of `kava smoke multi-teacher` that use whole verbs: extract, then a tiny training of each phase."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kava.lab.selfcheck import alignment as smoke_align
from kava.lab.selfcheck import fusion as smoke_fuse
from kava.lab.selfcheck.context import Place, expect, nearness
from kava.lab.selfcheck.foreign_teachers import KINDS, teacher_folder
from kava.lab.selfcheck.runs import run_verb, weight_gap

TINY = (
    *("dataset.generator.train_size=32", "dataset.generator.val_size=8"),
    *("training.batch_size=8", "training.learning_rate=1e-3", "training.warmup_ratio=0", "logging.report_to=[]"),
)
RECIPE, STEPS = "multi_teacher_embedded", 8


def try_extraction(place: Place) -> str:
    """The same run with its teachers live and from stores of what each gives at its own tokens."""
    stores = {kind: place.folder / f"store_{kind}" for kind in KINDS}
    live, stored = (_teachers(place, found) for found in ({}, stores))
    for kind, store in stores.items():
        words = ["--config", RECIPE, *TINY, live, _device(place), "--batch_size", "8"]
        run_verb("extract", *words, "--teacher", kind, "--output_dir", str(store), "--with_importance")
    runs = [
        _distill(place, f"teachers_{name}", 3, words, steps=2) for name, words in (("live", live), ("stored", stored))
    ]
    gap = weight_gap(*(run / "best_checkpoint" for run in runs))
    expect(gap <= 1e-4, f"teachers read from their stores train other weights, off by {gap:.1e}")
    return f"{len(stores)} teachers of other tokenizers, live and from stores: the same weights, {nearness(gap)}"


def _teachers(place: Place, stores: Mapping[str, Path]) -> str:
    """mixture.teachers with every one of KINDS, read from its store where it has one."""
    entries = [{"name": kind, "model": str(teacher_folder(place, kind))} for kind in KINDS]
    return "mixture.teachers=" + json.dumps(
        [entry | ({"store": str(stores[entry["name"]])} if stores else {}) for entry in entries]
    )


def _try_phase(number: int, place: Place) -> str:
    """A few updates; what is held out must come nearer to the fused teacher, and the student must load."""
    foreign = ["kava:embedded", *(str(teacher_folder(place, kind)) for kind in ("byte_bpe", "unigram"))]
    teachers = {1: ["--teacher_prompts", "default", "cot"], 2: ["--teacher_models", *foreign[:2]]}
    run = _distill(place, f"phase{number}", number, *teachers.get(number, ["--teacher_models", *foreign]))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    held = [line for line in lines if "eval_kv" in line]
    expect(bool(held), "the distance to the fused teacher was not measured on held-out examples")
    start, end = held[-1]["eval_kv_start"], held[-1]["eval_kv"]
    expect(end < start, f"held-out distance to the fused teacher rises from {start:.4g} to {end:.4g}")
    seen = f"held-out KV {start:.3g} to {end:.3g}, {held[-1]['eval_kv_unexplained']:.2f} of the mean predictor's"
    weights = json.loads((run / "routing.jsonl").read_text(encoding="utf-8").splitlines()[-1])["weights"]
    expect(abs(sum(weights.values()) - 1) < 1e-5, f"weights {weights} do not sum to 1")
    found = run_verb("evaluate", "--checkpoint", str(run / "best_checkpoint"), "--limit", "2", "--device", place.device)
    expect(found[0]["total"] == 2, "the student was not asked")
    return f"{seen}; weights {' '.join(f'{weight:.2f}' for weight in weights.values())}; the student loads"


def _distill(place: Place, name: str, phase: int, *words: str, steps: int = STEPS) -> Path:
    folder = place.folder / name
    given: list[Any] = ["--config", RECIPE, "--phase", str(phase), "--output_dir", str(folder)]
    given += ["--max_steps", str(steps), "--eval_steps", str(steps), "--logging_steps", "1", *words]
    run_verb("distill", *given, *TINY, _device(place))
    return folder


def _device(place: Place) -> str:
    return f"system.device={place.device.partition(':')[0]}"


COMPONENTS: dict[str, Callable[[Place], str]] = {
    **smoke_align.COMPONENTS,
    **smoke_fuse.COMPONENTS,
    "extraction": try_extraction,
    **{f"phase{number}": partial(_try_phase, number) for number in (1, 2, 3, 4, 5)},
}
