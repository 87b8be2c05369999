"""Run folders of mixtures for tests of the report: every number is computed here, none was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from report_runs import answer

TEACHERS = ("a", "b", "c")
SPECS = [
    {"name": "a", "model": "org/tiny-a", "prompt": "default"},
    {"name": "b", "model": "org/tiny-b", "prompt": "cot"},
    {"name": "c", "model": None, "prompt": "default"},
]
STUDENT_LAYERS = 4
LAYERS = {"a": 4, "b": 6, "c": 2}
TASKS = ("sums", "chains", "words")
STEPS = tuple(range(20, 420, 20))
TEXT = "12 apples + 30 = 42 apples. So 42."


def softmax(scores: list[float]) -> list[float]:
    high = max(scores)
    shares = [math.exp(score - high) for score in scores]
    return [share / sum(shares) for share in shares]


def routed(step: int, layer: int, seed: int, names: tuple[str, ...]) -> list[float]:
    """From equal weights to one teacher, the later layers to another one."""
    grown = step / STEPS[-1]
    lean = 2 * layer / (STUDENT_LAYERS - 1) - 1
    return softmax([grown * (1 + 0.2 * seed), 2.5 * grown * lean, -grown][: len(names)])


def mean_rows(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def entropy(weights: list[float]) -> float:
    return -sum(w * math.log(w) for w in weights if w > 0)


def routing(seed: int, fusion: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    lines = []
    for step in STEPS:
        layers = [routed(step if fusion != "fixed" else 0, i, seed, names) for i in range(STUDENT_LAYERS)]
        weights = mean_rows(layers)
        by_layer = layers if fusion == "learnable" else [weights]
        lines.append({"step": step, "weights": dict(zip(names, weights, strict=True)), "by_layer": by_layer,
                      "entropy": entropy(weights), "temperature": max(0.5, 1 - step / 1000)})  # fmt: skip
    return lines


def samples(fusion: str, names: tuple[str, ...]) -> dict[str, Any]:
    entries = []
    for i in range(24):
        scores = [2.0 * (i % 3 == k) + 0.4 * ((i + k) % 5) for k in range(len(names))]
        weights = softmax(scores) if fusion == "learnable" else [1 / len(names)] * len(names)
        entries.append({"id": f"{TASKS[i % 3]}/{i}", "task": TASKS[i % 3], "weights": weights, "by_layer": [weights]})
    return {"step": STEPS[-1], "teachers": list(names), "samples": entries}


def layer_loss(seed: int) -> list[dict[str, Any]]:
    """Later layers are harder and learn more slowly; the last one is compared from the fifth line on."""

    def loss(step: int, layer: int, scale: float) -> float | None:
        if layer == STUDENT_LAYERS - 1 and step < STEPS[4]:
            return None
        return scale * (1 + layer) * math.exp(-step / (60 + 80 * layer)) + 0.02 * scale * seed

    return [{"step": s, "k": [loss(s, i, 2.0) for i in range(STUDENT_LAYERS)],
             "v": [loss(s, i, 0.5) for i in range(STUDENT_LAYERS)]} for s in STEPS]  # fmt: skip


def pieces(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, len(TEXT))) for start in range(0, len(TEXT), size)]


def overlap(first: tuple[int, int], second: tuple[int, int]) -> float:
    shared = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (max(first[1], second[1]) - min(first[0], second[0])) if shared else 0.0


def alignment(names: tuple[str, ...]) -> dict[str, Any]:
    """The text cut into pieces of 2 characters for the student, of 2, 3 and 5 for the teachers."""
    teachers = {}
    for name in names:
        student, teacher = pieces(2), pieces({"a": 2, "b": 3, "c": 5}[name])
        ratio = (LAYERS[name] - 1) / (STUDENT_LAYERS - 1)
        layer_map = []
        for i in range(STUDENT_LAYERS):
            low = min(int(i * ratio + 1e-9), LAYERS[name] - 1)
            share = i * ratio - low
            layer_map.append([[low, 1 - share], [low + 1, share]] if share > 1e-9 else [[low, 1.0]])
        teachers[name] = {
            "coverage": 1.0 if name != "c" else 0.875,
            "layer_map": layer_map,
            "num_layers": LAYERS[name],
            "example": {
                "text": TEXT,
                "student": [TEXT[a:b] for a, b in student],
                "teacher": [TEXT[a:b] for a, b in teacher],
                "iou": [[overlap(piece, other) for other in teacher] for piece in student],
            },
        }
    return {"teachers": teachers, "student_layers": STUDENT_LAYERS}


def log(seed: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in STEPS:
        lines.append({"step": step, "ce_student": 2.0 / step + 0.1, "kv": 3.0 * math.exp(-step / 100)})
        if step % 100 == 0:
            kv = 1.5 * math.exp(-step / 200) + 0.1 * seed
            validation = {"step": step, "eval_ce": 1.0 + 10 / step, "eval_gap_ce": 0.05}
            if names:
                validation |= {"eval_kv": kv, "eval_kv_start": 1.8, "eval_kv_mean_predictor": 1.2,
                               "eval_kv_unexplained": kv / 1.2, "eval_kv_unexplained_start": 1.5, "eval_gap_kv": 0.1,
                               "eval_cossim": 0.5, "eval_entropy": 0.9}  # fmt: skip
                validation |= {f"eval_kv_{name}": kv * (1.2 + 0.3 * i) for i, name in enumerate(names)}
                validation |= {f"eval_weight_{name}": 1 / len(names) for name in names}
            lines.append(validation)
    return lines


def recipe(member: str, seed: int, fusion: str, names: tuple[str, ...]) -> dict[str, Any]:
    specs = [spec for spec in SPECS if spec["name"] in names]
    return {
        "about": {"name": "tiny"},
        "model": {"name": "tiny-student"},
        "explicit": {"enabled": True},
        "loss": {"alpha2_kv": 2.0 if names else 0.0, "student_ce": 1.0},
        "mixture": {"teachers": specs, "fusion": fusion, "collapse_alarm": 0.95},
        "system": {"seed": seed},
    }


def lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in entries))


def run(root: Path, member: str, seed: int, fusion: str = "learnable", names: tuple[str, ...] = TEACHERS) -> Path:
    """A finished run; without names one that no teacher taught."""
    folder = root / member / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(member, seed, fusion, names), sort_keys=False))
    meta = {"versions": {"kava": "0.1.0"}, "device": "cpu", "seconds": 60.0, "data": {"sha256": "cd" * 32},
            "finished": True, "steps": STEPS[-1], "effective_batch_size": 8}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    lines(folder / "log.jsonl", log(seed, names))
    answer(folder, "chains.cot", 20 + seed, mode="cot", cue="generated")
    if names:
        lines(folder / "routing.jsonl", routing(seed, fusion, names))
        (folder / "routing_samples.json").write_text(json.dumps(samples(fusion, names)))
        lines(folder / "layer_loss.jsonl", layer_loss(seed))
        (folder / "alignment.json").write_text(json.dumps(alignment(names)))
    return folder


def suite(root: Path, seeds: tuple[int, ...] = (1, 2)) -> Path:
    for seed in seeds:
        run(root, "sft", seed, names=())
        run(root, "single_a", seed, "fixed", ("a",))
        run(root, "fixed", seed, "fixed")
        run(root, "similarity", seed, "similarity")
        run(root, "learnable", seed, "learnable")
    return root
