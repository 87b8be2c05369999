"""The teachers of a mixture: one call returns one record per teacher, at its own tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kava.backbone.foreign import Foreign
from kava.backbone.load import foreign_model, load_foreign, load_tokenizer, locate, without_weights
from kava.backbone.model import Backbone
from kava.config import ModelConfig, Recipe, TeacherSpec
from kava.data.encode import Encoder
from kava.data.teacher_texts import TeacherTokenization, TeacherTokenizations, view
from kava.errors import ConfigError, DataError
from kava.teachers.base import KVShape, Teacher, TeacherKV, TeacherWants
from kava.teachers.live import ForeignTeacher, LiveTeacher
from kava.teachers.manifest import Manifest, tokenizer_hash
from kava.teachers.offloaded import OffloadedTeacher
from kava.teachers.store import StoredTeacher

Shard = Callable[[LiveTeacher], LiveTeacher]


@dataclass(frozen=True)
class TeacherSet:
    """`teachers(batch, wants)`: a list of TeacherKV, teacher i at the columns of t{i}.cot.

    tokenizations: for `TeachersCollator`.
    """

    names: tuple[str, ...]
    teachers: tuple[Teacher, ...]
    tokenizations: TeacherTokenizations

    @property
    def shapes(self) -> tuple[KVShape, ...]:
        return tuple(teacher.shape for teacher in self.teachers)

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> list[TeacherKV]:
        return [teacher(view(batch, i), wants) for i, teacher in enumerate(self.teachers)]


def load_teacher_set(
    recipe: Recipe, student_tokenizer: Any, device: torch.device, shard: Shard | None = None
) -> TeacherSet:
    """The teachers of mixture.teachers, frozen. Entries of one checkpoint share its weights and its tokenizer.

    `shard` takes a live teacher on the CPU and divides it among the processes; quantised ones stay whole.
    """
    loader, mixture = _Loader(recipe, device, shard), recipe.mixture
    teachers, each = zip(*(loader(spec) for spec in mixture.teachers), strict=True)
    names = tuple(spec.label for spec in mixture.teachers)
    if mixture.rope != "auto" and not any(teacher.rotary for teacher in teachers):
        raise ConfigError(
            f"mixture.rope is {mixture.rope}, but no teacher rotates its keys ({', '.join(names)})", "leave it at auto"
        )
    tokenizations = TeacherTokenizations(loader.encoder(student_tokenizer), each, mixture.time, mixture.iou_threshold)
    return TeacherSet(names, teachers, tokenizations)


def tokenization_of(spec: TeacherSpec, recipe: Recipe) -> TeacherTokenization:
    """A teacher's tokenization, without its weights."""
    return _Loader(recipe, torch.device("cpu")).tokenization(spec, foreign_model(spec, recipe.model))


def load_live(spec: TeacherSpec, recipe: Recipe, device: torch.device) -> LiveTeacher:
    """One teacher of a mixture with its weights."""
    length = None
    if recipe.mixture.rope != "auto":
        length = getattr(without_weights(recipe.model).config, "max_position_embeddings", None)
    model = load_foreign(spec, recipe.model, device, recipe.mixture.rope, length)
    model.dense_attention = recipe.system.attention == "dense"
    return live(model)


def live(model: Backbone) -> LiveTeacher:
    """The teacher of a model from `load_foreign`."""
    return ForeignTeacher(model) if isinstance(model, Foreign) else LiveTeacher(model)


class _Loader:
    """Loads teachers and tokenizations of mixture.teachers; what entries share is loaded once."""

    def __init__(self, recipe: Recipe, device: torch.device, shard: Shard | None = None):
        self.recipe, self.device, self.shard = recipe, device, shard
        self._encoders: dict[ModelConfig, tuple[Encoder, int]] = {}
        self._teachers: dict[Any, LiveTeacher | OffloadedTeacher] = {}

    def __call__(self, spec: TeacherSpec) -> tuple[LiveTeacher | OffloadedTeacher | StoredTeacher, TeacherTokenization]:
        if spec.store is not None:
            return self._stored(spec, StoredTeacher(spec.store))
        model = foreign_model(spec, self.recipe.model)
        tokenization = self.tokenization(spec, model)
        key = (model, spec.dtype, spec.quantization)
        teacher = self._teachers.get(key) or self._live(spec)
        self._teachers[key] = teacher
        limits = (teacher.max_positions, None if teacher.rotary is None else teacher.rotary.limit)
        shortest = min((limit for limit in limits if limit is not None), default=None)
        return teacher, replace(tokenization, max_positions=shortest)

    def encoder(self, tokenizer: Any) -> Encoder:
        return Encoder.of(tokenizer, self.recipe.dataset)

    def tokenization(self, spec: TeacherSpec, model: ModelConfig) -> TeacherTokenization:
        if model not in self._encoders:
            tokenizer = load_tokenizer(locate(model.name, model.gguf_file), model)
            try:
                self._encoders[model] = self.encoder(tokenizer), tokenizer.pad_token_id
            except DataError as error:
                raise DataError(f"teacher {spec.label}: {error.message}", error.hint) from error
        return TeacherTokenization(spec.label, self._encoders[model][0], spec.template, self._encoders[model][1])

    def _live(self, spec: TeacherSpec) -> LiveTeacher | OffloadedTeacher:
        load = partial(load_live, spec, self.recipe)
        if self.recipe.mixture.residence == "together":
            sharded = self.shard is not None and spec.quantization == "none"
            return self.shard(load(torch.device("cpu"))) if sharded and self.shard else load(self.device)
        if spec.quantization != "none":
            raise ConfigError(
                f"teacher {spec.label} is quantised, and its weights cannot move: mixture.residence is one_at_a_time",
                "set quantization: none for it, or mixture.residence=together",
            )
        return OffloadedTeacher(load, self.device)

    def _stored(self, spec: TeacherSpec, stored: StoredTeacher) -> tuple[StoredTeacher, TeacherTokenization]:
        stored.refuse_shared_tokens()
        made_by = stored.manifest.teacher
        model = ModelConfig(
            name=spec.model or made_by["name"],
            revision=spec.revision or made_by["revision"],
            gguf_file=spec.gguf_file or made_by.get("gguf_file"),
            trust_remote_code=spec.trust_remote_code,
        )
        tokenization = self.tokenization(spec, model)
        if problem := _differs(spec, stored.manifest, self.recipe.mixture.rope, tokenization):
            raise ConfigError(f"teacher {spec.label}: the store {stored.folder} {problem[0]}", problem[1])
        return stored, tokenization


def _differs(
    spec: TeacherSpec, manifest: Manifest, rope: str, tokenization: TeacherTokenization
) -> tuple[str, str] | None:
    """The first difference between an entry and its store, and a hint."""
    made_by = manifest.teacher
    again = "extract again into another folder"
    name = made_by["name"]
    if spec.model is not None and _last(spec.model) != _last(name):
        return f"was made by {name}, the entry names {spec.model}", "leave model out of the entry, or " + again
    if manifest.prompt != spec.template:
        return (
            f"was made with the prompt {manifest.prompt!r}, the entry has {spec.template!r}",
            "set the same, or " + again,
        )
    if made_by.get("rope", "auto") != rope:
        return f"was made with mixture.rope={made_by.get('rope')}, not {rope}", "set the same, or " + again
    if manifest.tokenizer != tokenizer_hash(tokenization.encoder.tokenizer):
        return f"was made with another tokenizer than that of {spec.model or name}", again
    for key, default in (("dtype", "float32"), ("quantization", "none"), ("revision", None), ("gguf_file", None)):
        value = getattr(spec, key)
        if value not in (default, made_by.get(key)):
            return f"was made with {key} {made_by.get(key)}, the entry has {value}", f"leave {key} out, or " + again
    return None


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
