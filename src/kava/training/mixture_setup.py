"""The teachers of a mixture, how they read, and what a run's folder tells of them.

alignment.json         share of matched tokens, layer map and one example, per teacher
routing.jsonl          mean weights per teacher and layer, entropy, temperature: a line per log line
layer_loss.jsonl       the KV term of each compared layer
routing_samples.json   weights of every held-out example, of the latest validation
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.data.teacher_texts import LOOKED_AT, Coverage, TeachersCollator, texts_of
from kava.files import write_json
from kava.fuse.collapse import Collapse
from kava.objective.objective import Objective
from kava.objective.targets import Target
from kava.teachers.teacher_set import TeacherSet, load_teacher_set
from kava.training.callbacks import append_json, cut_after, validates
from kava.training.data import Data
from kava.training.sharded_teacher import sharder

log = logging.getLogger("kava.train")
ALIGNMENT, ROUTING, LAYERS, SAMPLES = "alignment.json", "routing.jsonl", "layer_loss.jsonl", "routing_samples.json"
EXAMPLE_TOKENS = 60  # of the text in alignment.json, at most


class TeacherSetup:
    """The teachers and the collator that gives each of them its own tokens."""

    def __init__(self, recipe: Recipe, tokenizer: Any, data: Data, device: torch.device):
        self.recipe = recipe
        self.teachers: TeacherSet = load_teacher_set(recipe, tokenizer, device, sharder(device, recipe.system))
        texts = texts_of([*data.examples, *data.validation])
        self.collate = TeachersCollator(Collator(tokenizer.pad_token_id), self.teachers.tokenizations, texts)
        self.coverage: dict[str, Coverage] = {}
        self.example: dict[str, Any] = {}

    def check(self, splits: Mapping[str, Any]) -> None:
        """Refuses texts too long for a teacher, or of which it matches too little."""
        for name, rows in splits.items():
            floor = self.recipe.mixture.coverage_floor
            coverage = self.collate.check(rows, floor, f" of {name}") if len(rows) else {}
            self.coverage = self.coverage or coverage
        rows = [row for row in islice(iter(splits["training"]), LOOKED_AT) if 0 < len(row.cot) <= EXAMPLE_TOKENS]
        if rows:
            row = max(rows, key=lambda row: len(row.cot))
            self.example = {name: self.collate.example(row, i) for i, name in enumerate(self.teachers.names)}


class MixtureFiles(TrainerCallback):
    """Writes the four files; `note` takes the weights of held-out examples while they are measured."""

    def __init__(self, objective: Objective, setup: TeacherSetup):
        assert objective.mixture is not None
        self.source, self.setup = objective.mixture, setup
        self.samples: list[dict[str, Any]] = []
        self.held_out = Collapse()
        self.epoch = 0

    # -- training ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            run = Path(args.output_dir)
            cut_after(run / ROUTING, state.global_step)
            cut_after(run / LAYERS, state.global_step)
            write_json(run / ALIGNMENT, self._alignment())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs, run, names = logs or {}, Path(args.output_dir), self.setup.teachers.names
        step, main = state.global_step, state.is_world_process_zero
        if main and validates(logs) and self.samples:
            write_json(run / SAMPLES, {"step": step, "teachers": list(names), "samples": self.samples})
        if "loss" not in logs:
            return
        layers, window = self.source.metrics.drain()
        if main and layers:
            append_json(run / LAYERS, step, dict(layers))
        if not main or window is None:
            return
        weights = dict(zip(names, window.weights, strict=True))
        facts = {"entropy": window.entropy, "temperature": self.source.mixture.temperature(self.epoch)}
        append_json(run / ROUTING, step, {"weights": weights, "by_layer": window.by_layer, **facts})
        if window.collapsed is not None and self.setup.recipe.mixture.fusion != "fixed":
            log.warning(
                "step %d: the weights have collapsed: teacher %s has %.3f of them, above mixture.collapse_alarm; use "
                "mixture.entropy=diverse with a larger mixture.entropy_weight, a higher temperature, or leave the others "
                "out",
                *(step, names[window.collapsed], window.weights[window.collapsed]),
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.epoch = int((state.epoch or 0) + 1e-6)

    def _alignment(self) -> dict[str, Any]:
        mixture, teachers = self.source.mixture, {}
        for name, shape, layers in zip(mixture.names, mixture.shapes, mixture.maps, strict=True):
            coverage = self.setup.coverage.get(name)
            teachers[name] = {
                "coverage": None if coverage is None else coverage.share,
                "num_layers": shape.num_layers,
                "layer_map": [[list(part) for part in entry] for entry in layers],
                "example": self.setup.example.get(name),
            }
        return {"teachers": teachers, "student_layers": mixture.student.num_layers}

    # -- held-out examples ---------------------------------------------------------------------------------------

    def note(self, rows: Sequence[Encoded], target: Target) -> None:
        """The weights of each example, over its compared tokens."""
        assert target.blend is not None
        weights = target.blend.weights.expand(len(rows), -1, -1, -1)
        self.held_out.add(weights, target.mask)
        for b, row in enumerate(rows):
            kept = target.mask[b] if weights.shape[2] > 1 else slice(None)
            by_layer = weights[b][:, kept].double().mean(1)
            if bool(target.mask[b].any()):
                task = row.id.rpartition("/")[0] or self.setup.recipe.dataset.name
                means = {"weights": by_layer.mean(0).tolist(), "by_layer": by_layer.tolist()}
                self.samples.append({"id": row.id, "task": task, **means})

    def means(self) -> dict[str, float]:
        """Mean weight per teacher, and the mean entropy of an example's weights."""
        window = self.held_out.close()
        if window is None:
            return {}
        named = zip(self.setup.teachers.names, window.weights, strict=True)
        return {"entropy": window.entropy, **{f"weight_{name}": weight for name, weight in named}}
