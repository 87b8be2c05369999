"""From a recipe to a model and its tokenizer: the only place where pretrained weights come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kava.backbone.attention import NAME
from kava.backbone.families import Family, family_of
from kava.backbone.kv import keywords_arrive
from kava.backbone.lora import add_lora
from kava.backbone.model import LatentModel
from kava.backbone.tokens import add_special_tokens, make_room
from kava.config import ModelConfig, Recipe
from kava.errors import ModelError

SHIPPED = {"kava:embedded": Path(__file__).parent.parent / "assets" / "embedded"}


def load_tokenizer(source: str | Path, model: ModelConfig) -> Any:
    """A fast tokenizer, or a refusal: spans come from its offsets."""
    tokenizer = _fetch(AutoTokenizer, source, model, "tokenizer")
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source}: the tokenizer {type(tokenizer).__name__} is a slow one, which gives no character offsets",
            "use a checkpoint with a tokenizer.json, or convert it: AutoTokenizer.from_pretrained(...).save_pretrained",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{source}: the tokenizer has no end-of-text token", "set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any real token serves
    return tokenizer


def build_model(recipe: Recipe) -> tuple[LatentModel, Any]:
    """The model to train, from its base checkpoint: special tokens first, then LoRA, then the projection."""
    source = locate(recipe.model.name)
    tokenizer = load_tokenizer(source, recipe.model)
    config = _fetch(AutoConfig, source, recipe.model, "config.json")
    family = family_of(config, recipe.model.name)
    lm = _fetch(AutoModelForCausalLM, source, recipe.model, "weights", dtype=_dtype(recipe.model.dtype))
    return assemble(lm, family, tokenizer, recipe), tokenizer


def assemble(lm: Any, family: Family, tokenizer: Any, recipe: Recipe) -> LatentModel:
    """Puts special tokens, adapters and projection around a causal LM."""
    if recipe.training.gradient_checkpointing and not keywords_arrive(family):
        raise ModelError(
            f"training.gradient_checkpointing cannot be used with {family.name} on this transformers (before 5): a "
            "recomputed layer would not see its key/value prefix",
            "update transformers, or set training.gradient_checkpointing=false",
        )
    lm.set_attn_implementation(NAME)
    special = add_special_tokens(tokenizer)
    make_room(lm, special)
    lm.config.use_cache = False
    if recipe.training.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone = add_lora(lm, family, special, recipe.lora) if recipe.lora.enabled else lm
    return LatentModel(backbone, family, special, recipe.latent, recipe.loss.use_projection)


def locate(name: str) -> str | Path:
    """The shipped checkpoint, a local folder, or a name for the hub and its cache."""
    if name in SHIPPED:
        return SHIPPED[name]
    if name.startswith("kava:"):
        raise ModelError(f"no checkpoint {name!r} is shipped", "shipped: " + ", ".join(SHIPPED))
    return name


def _fetch(kind: Any, source: str | Path, model: ModelConfig, what: str, **extra: Any) -> Any:
    try:
        return kind.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code, **extra)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the {what} of model {str(source)!r}: {reason}",
            "give a local folder as model.name, set HF_HOME to a cache that holds the model, or check network and login",
        ) from error


def _dtype(name: str) -> torch.dtype | str:
    return name if name == "auto" else getattr(torch, name)
