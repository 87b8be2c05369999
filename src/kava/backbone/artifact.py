"""Saves and loads a student: trained weights, recipe and tokenizer in one folder. Loading is strict.

kava.json            method, versions, names of the trained weights, fingerprint of the frozen ones, hash of every file
recipe.yaml          every setting of the run that made it
trained.safetensors  every trained weight under its own name
config.json          the backbone's shape
tokenizer files
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kava import __version__
from kava.backbone.card import (
    CARD,
    CONFIG,
    RECIPE,
    SHARDS,
    TORN,
    WEIGHTS,
    check_files,
    check_recipe,
    check_shards,
    check_tokenizer,
    method_of,
    write_card,
)
from kava.backbone.families import Family, family_of
from kava.backbone.load import _dtype, _fetch, assemble, build_model, load_tokenizer
from kava.backbone.model import Backbone, LatentModel
from kava.backbone.shards import listed, read_shards
from kava.backbone.tokens import save_tokenizer
from kava.backbone.unreadable import UNREADABLE
from kava.config import Recipe, load_recipe, save_recipe
from kava.config.trust import code_allowed, trusted
from kava.errors import CheckpointError, CodeRefused, ConfigError, ModelError, first_line
from kava.files import make_folder, usual_mode

WEIGHT = "weight/"  # before the names of weights in shards/


@dataclass(frozen=True)
class Weights:
    """What a student's folder says of its weights: the trained ones by name, and the fingerprint of the frozen ones."""

    trained: Mapping[str, torch.Tensor]
    frozen: str

    @classmethod
    def of(cls, model: LatentModel) -> "Weights":
        return cls(model.trained(), fingerprint(model))


def write_student(
    model: LatentModel, tokenizer: Any, recipe: Recipe, folder: Path, weights: Weights | None = None, **facts: Any
) -> None:
    """Writes a student's folder; `facts` (step, accuracy, ...) go into kava.json. `weights`: in place of the model's.

    With a fact `shards` the trained weights are in shards/ already.
    """
    make_folder(folder)
    weights = weights or Weights.of(model)
    if facts.get("shards") is None:
        trained = {name: weight.detach().cpu().contiguous() for name, weight in weights.trained.items()}
        save_file(trained, folder / WEIGHTS)
        usual_mode(folder / WEIGHTS)
    model.config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    facts = {
        "kava_version": __version__,
        "method": method_of(recipe),
        "trained": sorted(weights.trained),
        "frozen_fingerprint": weights.frozen,
        **facts,
    }
    save_recipe(recipe, folder / RECIPE)
    write_card(folder, facts)


def load_student(
    folder: str | Path, base: str | None = None, trust_remote_code: bool = False
) -> tuple[LatentModel, Any, Recipe]:
    """The saved model, its tokenizer and recipe. With LoRA the base model is loaded too, from the recipe or from `base`.

    Code that came with the student or its base runs only with `trust_remote_code`, whatever their files say.
    """
    folder = Path(folder)
    card = check_files(folder)
    check_shards(folder, card)
    recipe = trusted(load_recipe(folder / RECIPE), trust_remote_code, stored=str(folder / RECIPE))
    check_recipe(card, recipe, folder)
    if base is not None and not recipe.lora.enabled:
        problem = f"base {base!r} has no effect: {folder} holds all its weights (lora.enabled is false)"
        raise ConfigError(problem, "leave --base out")
    if base is not None:
        recipe = recipe.changed("model", name=base, revision=None)
    with code_allowed(trust_remote_code):
        if recipe.lora.enabled:
            model, tokenizer = _with_base(folder, recipe)
        else:
            check_tokenizer(folder)
            own = recipe.changed("model", gguf_file=None)  # the folder holds all that was read from the file
            tokenizer = load_tokenizer(folder, own.model)
            model = assemble(*without_trained_weights(folder, own), tokenizer, own)
    if sorted(card.trained) != sorted(model.trained()):
        raise CheckpointError(f"{folder / CARD}: trained does not name the weights that {RECIPE} trains", TORN)
    load_weights(model, folder)
    if fingerprint(model) != card.frozen_fingerprint:
        raise CheckpointError(
            f"{folder}: the base model {recipe.model.name!r} is not the one this student was trained on",
            "give the right base folder, or the revision it was trained with",
        )
    return model.eval(), tokenizer, recipe


def _with_base(folder: Path, recipe: Recipe) -> tuple[LatentModel, Any]:
    """The base model with new adapters, and its tokenizer."""
    try:
        return build_model(recipe)
    except CodeRefused:
        raise
    except ModelError as error:
        problem = f"{folder}: the base model that its adapters belong to: {error.message}"
        raise ModelError(problem, "name the folder where it is now: --base FOLDER (in Python: base=)") from error


def without_trained_weights(folder: Path, recipe: Recipe) -> tuple[Any, Family]:
    """The model that config.json describes, before its weights are read."""
    try:
        config = _fetch(AutoConfig, folder, recipe.model, CONFIG)
        lm = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(recipe.model.dtype), trust_remote_code=recipe.model.trust_remote_code
        )
    except (*UNREADABLE, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: no model can be built from it ({first_line(error)})", TORN
        ) from error
    return lm, family_of(config, str(folder))


@torch.no_grad()
def load_weights(model: LatentModel, folder: str | Path) -> None:
    """Loads the saved weights; names and shapes must match the trained parameters exactly."""
    path, saved = saved_weights(Path(folder))
    trained = model.trained()
    missing, extra = sorted(set(trained) - set(saved)), sorted(set(saved) - set(trained))
    if missing or extra:
        raise CheckpointError(
            f"{path}: weights do not fit the model (missing {missing[:3]}, unexpected {extra[:3]})",
            "recipe.yaml beside it must be the one the student was trained with",
        )
    for name, weight in trained.items():
        if weight.shape != saved[name].shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(saved[name].shape)}, not {tuple(weight.shape)}")
    check_numbers(saved, path)
    for name, weight in trained.items():
        weight.copy_(saved[name])


def saved_weights(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Where a folder has its trained weights, and the weights."""
    if (folder / SHARDS).is_dir():
        start = len(WEIGHT)
        saved = {
            name[start:]: torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in listed(folder).items()
            if name.startswith(WEIGHT)
        }
        read_shards(folder, {WEIGHT + name: value for name, value in saved.items()})
        return folder / SHARDS, saved
    path = folder / WEIGHTS
    try:
        return path, load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "the folder is torn; use another") from error


def check_numbers(saved: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuses weights that are not floating-point numbers, not a number or infinite."""
    for name, weight in saved.items():
        if not weight.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {str(weight.dtype).removeprefix('torch.')}, not weights", TORN)
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{path}: {name} is not finite (NaN or infinity)", TORN)


def fingerprint(model: Backbone) -> str:
    """A hash of name, shape and first values of every frozen weight; it differs for another base model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:
            head = weight.detach().flatten()[:8].float().cpu().tolist()
            digest.update(f"{name} {tuple(weight.shape)} {head}\n".encode())
    return digest.hexdigest()
