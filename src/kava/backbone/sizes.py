"""A model's sizes from its config.json, without loading weights."""

from __future__ import annotations

from types import SimpleNamespace

from kava.backbone.families import Family, family_of, known
from kava.backbone.load import load_config
from kava.backbone.model import Backbone
from kava.config import ModelConfig


def without_weights(model: ModelConfig, any_family: bool = False) -> Backbone:
    """A model with sizes but no weights. `any_family`: also for families read through their cache, by their config."""
    config = load_config(model)
    if any_family and not known(config):
        return Backbone(SimpleNamespace(config=config.get_text_config()), Family(str(config.model_type), rotary=False))
    return Backbone(SimpleNamespace(config=config), family_of(config, model.name))


def stored_dtype(model: Backbone) -> str:
    """The dtype of a checkpoint's weights by its config; float32 if it has none."""
    dtype = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None) or "float32"
    return str(dtype).removeprefix("torch.")


def num_layers(model: ModelConfig) -> int:
    """Layers of a model of any family, by its config."""
    return int(without_weights(model, any_family=True).kv_shape.num_layers)
