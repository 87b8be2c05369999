"""Supported model families, one row each."""

from dataclasses import dataclass
from typing import Any

from kava.errors import ModelError

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Where things are in a family's causal language model.

    decoder    attribute of the causal LM that runs the layers and the final norm
    embedding  the token embedding's name inside the decoder
    linear     the linear layers that LoRA adapts by default
    rotary     keys are rotated (half-split layout), so they can be un-rotated
    conv1d     linear layers keep their weight transposed (LoRA's fan_in_fan_out)
    """

    name: str
    decoder: str = "model"
    embedding: str = "embed_tokens"
    linear: tuple[str, ...] = LLAMA_LINEAR
    rotary: bool = True
    conv1d: bool = False


FAMILIES = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gpt2": Family("gpt2", "transformer", "wte", ("c_attn", "c_proj", "c_fc"), rotary=False, conv1d=True),
}


def known(config: Any) -> bool:
    """True for a supported family; other models can still be teachers (`foreign.py`)."""
    try:
        family_of(config, "")
    except ModelError:
        return False
    return True


def family_of(config: Any, where: str) -> Family:
    """The family of a transformers config; a ModelError explains why a model is not supported."""
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: model family {model_type!r} is not supported", "supported: " + ", ".join(sorted(FAMILIES))
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError(
            f"{where}: some layers use a sliding attention window, which the packed mask does not cover",
            "set use_sliding_window to false in the model's config.json if the context fits without it",
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or getattr(config, "reorder_and_upcast_attn", False):
        raise ModelError(f"{where}: GPT-2 variants with rescaled attention are not supported")
    return FAMILIES[model_type]
