"""A model's sizes from its config.json alone, where loading weights would be a waste."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import AutoConfig

from kava.backbone.families import family_of
from kava.backbone.load import _fetch, locate
from kava.backbone.model import Backbone
from kava.config import ModelConfig


def without_weights(model: ModelConfig) -> Backbone:
    """Knows its sizes and nothing else."""
    config = _fetch(AutoConfig, locate(model.name), model, "config.json")
    return Backbone(SimpleNamespace(config=config), family_of(config, model.name))


def stored_dtype(model: Backbone) -> str:
    """The type that the checkpoint's weights were saved in; float32 where its config does not say."""
    dtype = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None) or "float32"
    return str(dtype).removeprefix("torch.")
