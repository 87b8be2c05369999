"""Gradient checkpointing: decoder layers that are computed a second time in the backward pass."""

from typing import Any

from kava.backbone.families import Family
from kava.backbone.kv import keywords_arrive
from kava.errors import ModelError


def recompute_layers(lm: Any, family: Family) -> None:
    """Lets a causal LM keep no activations inside its layers: less memory, more time."""
    if not keywords_arrive(family):
        raise ModelError(
            f"training.gradient_checkpointing cannot be used with {family.name} on this transformers (before 5): a "
            "recomputed layer would not see its key/value prefix",
            "update transformers, or set training.gradient_checkpointing=false",
        )
    reentrant = {"use_reentrant": False}
    if hasattr(lm, "activation_checkpointing_enable"):  # the name in later versions of transformers 5
        lm.activation_checkpointing_enable(activation_checkpointing_kwargs=reentrant)
    else:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
