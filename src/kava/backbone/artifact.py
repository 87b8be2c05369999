"""Saves and loads a student: trained weights, recipe and tokenizer in one folder. Loading is strict.

kava.json            method, versions, names of the trained weights, fingerprint of the frozen ones
recipe.yaml          every setting of the run that made it
trained.safetensors  every trained weight under its own name
config.json          the backbone's shape
tokenizer files
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kava import __version__
from kava.backbone.families import family_of
from kava.backbone.load import _dtype, _fetch, assemble, build_model, load_tokenizer
from kava.backbone.model import Backbone, LatentModel
from kava.backbone.tokens import save_tokenizer
from kava.config import Recipe, load_recipe, save_recipe
from kava.errors import CheckpointError, ConfigError, ModelError
from kava.files import make_folder, usual_mode, write_json

CARD, RECIPE, WEIGHTS = "kava.json", "recipe.yaml", "trained.safetensors"
FORMAT = 1


def write_student(model: LatentModel, tokenizer: Any, recipe: Recipe, folder: Path, **facts: Any) -> None:
    """Writes a student's folder; `facts` (step, accuracy, ...) go into kava.json."""
    make_folder(folder)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.trained().items()}
    save_file(weights, folder / WEIGHTS)
    usual_mode(folder / WEIGHTS)
    model.config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    card = {
        "format": FORMAT,
        "kava_version": __version__,
        "method": "explicit" if recipe.explicit.enabled else "latent",
        "trained": sorted(weights),
        "frozen_fingerprint": fingerprint(model),
        **facts,
    }
    save_recipe(recipe, folder / RECIPE)
    write_json(folder / CARD, card)


def save_plain(model: LatentModel, tokenizer: Any, folder: Path) -> None:
    """Saves the student for AutoModelForCausalLM.from_pretrained(folder), adapters merged. Merges in place."""
    lm = model.backbone
    if hasattr(lm, "merge_and_unload"):
        lm = lm.merge_and_unload()
    lm.config.use_cache = True
    lm.save_pretrained(folder)
    lm.config.use_cache = False
    for file in folder.glob("*.safetensors"):
        usual_mode(file)
    save_tokenizer(tokenizer, folder)


def read_card(folder: str | Path) -> dict[str, Any]:
    """kava.json of a student's folder."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a student's folder: it has no {CARD}", "give a run's best_checkpoint folder"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})", "the folder is torn; use another") from error
    if card.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {card.get('format')!r}, this version reads {FORMAT}", "update kava")
    return card


def load_student(folder: str | Path, base: str | None = None) -> tuple[LatentModel, Any, Recipe]:
    """The saved model, its tokenizer and recipe. With LoRA the base model is loaded too, from the recipe or from `base`."""
    folder = Path(folder)
    card = read_card(folder)
    recipe = load_recipe(folder / RECIPE)
    if base is not None and not recipe.lora.enabled:
        problem = f"base {base!r} has no effect: {folder} holds all its weights (lora.enabled is false)"
        raise ConfigError(problem, "leave --base out")
    if base is not None:
        recipe = recipe.changed("model", name=base, revision=None)
    if recipe.lora.enabled:
        try:
            model, tokenizer = build_model(recipe)
        except ModelError as error:
            problem = f"{folder}: the base model that its adapters belong to: {error.message}"
            raise ModelError(problem, "name the folder where it is now: --base FOLDER (in Python: base=)") from error
    else:
        tokenizer = load_tokenizer(folder, recipe.model)
        config = _fetch(AutoConfig, folder, recipe.model, "config.json")
        lm = AutoModelForCausalLM.from_config(config, dtype=_dtype(recipe.model.dtype))
        model = assemble(lm, family_of(config, str(folder)), tokenizer, recipe)
    load_weights(model, folder)
    if fingerprint(model) != card["frozen_fingerprint"]:
        raise CheckpointError(
            f"{folder}: the base model {recipe.model.name!r} is not the one this student was trained on",
            "give the right base folder, or the revision it was trained with",
        )
    return model.eval(), tokenizer, recipe


@torch.no_grad()
def load_weights(model: LatentModel, folder: str | Path) -> None:
    """Loads the saved weights; names and shapes must match the trained parameters exactly."""
    path = Path(folder) / WEIGHTS
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "the folder is torn; use another") from error
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
        weight.copy_(saved[name])


def fingerprint(model: Backbone) -> str:
    """A hash of name, shape and first values of every frozen weight; it differs for another base model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:
            head = weight.detach().flatten()[:8].float().cpu().tolist()
            digest.update(f"{name} {tuple(weight.shape)} {head}\n".encode())
    return digest.hexdigest()
