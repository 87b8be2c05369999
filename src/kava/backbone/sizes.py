"""A model's sizes from its config.json alone, where loading weights would be a waste."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import AutoConfig

from kava.backbone.families import Family, family_of, known
from kava.backbone.load import BLANK, _fetch, locate
from kava.backbone.model import Backbone
from kava.config import ModelConfig


def without_weights(model: ModelConfig, any_family: bool = False) -> Backbone:
    """Knows its sizes and nothing else. `any_family`: those of a family that is read through its cache, as it says."""
    config = _fetch(AutoConfig, locate(model.name), model, "config.json")
    if model.name in BLANK:
        config.update(BLANK[model.name][1])
    if any_family and not known(config):
        return Backbone(SimpleNamespace(config=config.get_text_config()), Family(str(config.model_type), rotary=False))
    return Backbone(SimpleNamespace(config=config), family_of(config, model.name))


def stored_dtype(model: Backbone) -> str:
    """The type that the checkpoint's weights were saved in; float32 where its config does not say."""
    dtype = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None) or "float32"
    return str(dtype).removeprefix("torch.")


def num_layers(model: ModelConfig) -> int:
    """Layers of a model of any family, by its config."""
    return int(without_weights(model, any_family=True).num_layers)
