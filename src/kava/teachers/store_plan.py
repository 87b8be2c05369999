"""A teacher store before it is written: which teacher, what it will hold, how large it will be; and writing it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kava.backbone.artifact import fingerprint
from kava.backbone.load import foreign_model, load_teacher, load_tokenizer, locate, spec_of
from kava.config import Recipe, TeacherSpec
from kava.errors import ConfigError, DataError
from kava.provenance import versions
from kava.teachers import extract
from kava.teachers.live import LiveTeacher
from kava.teachers.manifest import DTYPES, Manifest, plain, tokenizer_hash
from kava.teachers.request import Request, planned, read_source
from kava.teachers.shards import OPTIONAL, SIZE
from kava.teachers.teacher_set import load_live, tokenization_of

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def teacher_to_store(recipe: Recipe, name: str | None, own_tokenizer: bool, prompt: str | None) -> TeacherSpec | None:
    """The teacher that reads its own tokens; None: the recipe's one teacher, which reads the student's."""
    teachers = {spec.label: spec for spec in recipe.mixture.teachers}
    if name is not None or teachers:
        if own_tokenizer or prompt is not None:
            message = "--own_tokenizer and --prompt are for the teacher of a recipe without a mixture"
            raise ConfigError(message, "the entries of mixture.teachers say how each reads")
        if name is None and len(teachers) == 1:
            return next(iter(teachers.values()))
        if name not in teachers:
            reason = "the recipe has several teachers" if name is None else f"no teacher is called {name!r}"
            known = f"--teacher takes one of: {', '.join(teachers)}"
            raise ConfigError(reason, known if teachers else "the recipe has no mixture.teachers")
        return teachers[name]
    if not own_tokenizer and prompt is not None:
        hint = "a teacher with the student's tokens reads the student's text"
        raise ConfigError("--prompt without --own_tokenizer", hint)
    if not own_tokenizer:
        return None
    try:
        return TeacherSpec(**(spec_of(recipe).model_dump() | {"prompt": "default" if prompt is None else prompt}))
    except ValidationError as error:
        raise ConfigError(f"--prompt: {error.errors()[0]['msg']}", "such as 'Think first. {question}'") from error


class StorePlan:
    """The store that a request makes of a recipe's teacher and data; reads the data, loads no weights until `write`."""

    def __init__(self, recipe: Recipe, request: Request, progress: bool):
        self.recipe, self.progress = recipe, progress
        self.request = request.checked(recipe)
        self.tokenizer = load_tokenizer(locate(recipe.model.name, recipe.model.gguf_file), recipe.model)
        self.tokenization = None if request.spec is None else tokenization_of(request.spec, recipe)
        self.source = read_source(recipe, self.tokenizer, self.request.splits, progress, self.tokenization)
        self.manifest = planned(self.request, recipe, len(self.source.encoded))
        self.columns = extract.stored_columns(self.source.encoded, self.manifest)
        self.size = int(extract.shard_bytes(self.manifest, self.columns).sum())

    def facts(self) -> dict[str, Any]:
        manifest = self.manifest
        counts = {"examples": manifest.num_examples, "shards": manifest.num_shards, "columns": int(self.columns.sum())}
        return counts | {"dtype": manifest.dtype, "method": manifest.method, "estimated_bytes": self.size}

    def estimate(self) -> str:
        """The size of the store and how it comes about, on one line."""
        manifest = self.manifest
        optional = [name for name in OPTIONAL if getattr(manifest, f"with_{name}")]
        unit, divisor = next(pair for pair in UNITS if self.size >= pair[1] or pair is UNITS[-1])
        return (
            f"{manifest.num_examples} examples x 2 x {manifest.shape} x {self.columns.mean():.1f} columns x "
            f"{SIZE[manifest.dtype]} bytes{''.join(f' + {name}' for name in optional)} = {self.size / divisor:.3g} {unit} "
            f"in {manifest.num_shards} shards ({manifest.method})"
        )

    def write(self, device: torch.device, folder: Path, batch_size: int, part: tuple[int, int]) -> dict[str, Any]:
        """Load the teacher and write those shards of part i of n that are missing; how many were written, kept, missing."""
        recipe, spec, encoded = self.recipe, self.request.spec, self.source.encoded
        if spec is None:
            teacher = LiveTeacher(load_teacher(recipe, self.tokenizer, device))
        else:
            teacher = load_live(spec, recipe, device)
        name, most = spec.label if spec else "of the recipe", teacher.max_positions
        if most is not None and (longest := max(map(len, encoded), default=0)) > most:
            hint = "skip long ones with dataset.max_length, or take a teacher with a longer context"
            raise DataError(f"the longest example needs {longest} positions, the teacher {name} has {most}", hint)
        manifest = self._manifest_of(teacher)
        return vars(extract.extract(teacher, device, encoded, manifest, folder, batch_size, part, self.progress))

    def _manifest_of(self, teacher: LiveTeacher) -> Manifest:
        """The store's manifest with what only the teacher's weights tell."""
        model, spec = teacher.model, self.request.spec or spec_of(self.recipe)
        checkpoint = foreign_model(spec, self.recipe.model)
        loaded = str(model.causal_lm.dtype).removeprefix("torch.")
        is_plain = next(model.parameters()).is_floating_point() and loaded in DTYPES
        facts = {
            "name": checkpoint.name, "revision": checkpoint.revision, "quantization": spec.quantization, "dtype": loaded
        }  # fmt: skip
        if checkpoint.gguf_file is not None:
            facts["gguf_file"] = checkpoint.gguf_file
        own: dict[str, Any] = {}
        if self.request.spec is not None:
            rotary = teacher.rotary
            facts["rope"] = self.recipe.mixture.rope
            own = {"own_tokenizer": True, "prompt": spec.template, "rotary": None if rotary is None else plain(rotary)}
        return replace(
            self.manifest,
            shape=model.kv_shape,
            dtype=self.request.dtype or (loaded if is_plain else "float32"),
            teacher=facts | {"weights": fingerprint(model)},
            tokenizer=tokenizer_hash(self.tokenization.encoder.tokenizer if self.tokenization else self.tokenizer),
            data=self.source.facts,
            versions=versions(),
            **own,
        )
