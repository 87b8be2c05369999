"""Supported model families, one row each; `kava model check` measures what a row says."""

from dataclasses import dataclass
from typing import Any

from kava.errors import ModelError

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PHI3_LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Where things are in a family's causal language model, and what it computes that Llama does not.

    decoder      attribute of the causal LM that runs the layers and the final norm
    embedding    the token embedding's name inside the decoder
    linear       the linear layers that LoRA adapts by default
    rotary       keys are rotated (half-split layout), so they can be un-rotated
    conv1d       linear layers keep their weight transposed (LoRA's fan_in_fan_out)
    windows      config.sliding_window limits attention: in the layers that layer_types names, in all without layer_types

    Names of values in the config, empty where a family has none:

    scale        the factor of q.k in place of 1 / sqrt(D): a value and the power it is raised to
    cap          attention logits x become cap tanh(x / cap)
    input_scale  the decoder multiplies its inputs_embeds by it; "sqrt": by the root of the hidden size, unless the
                 embedding layer does so (Gemma 2, by version of transformers)
    divisor      the head's logits are divided by it
    logit_cap    the head's logits x become cap tanh(x / cap)
    """

    name: str
    decoder: str = "model"
    embedding: str = "embed_tokens"
    linear: tuple[str, ...] = LLAMA_LINEAR
    rotary: bool = True
    conv1d: bool = False
    windows: bool = False
    scale: tuple[str, float] | None = None
    cap: str = ""
    input_scale: str = ""
    divisor: str = ""
    logit_cap: str = ""


FAMILIES = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2", windows=True),
    "qwen3": Family("qwen3", windows=True),
    "gpt2": Family("gpt2", "transformer", "wte", ("c_attn", "c_proj", "c_fc"), rotary=False, conv1d=True),
    "mistral": Family("mistral", windows=True),
    "phi3": Family("phi3", linear=PHI3_LINEAR, windows=True),
    "olmo2": Family("olmo2"),
    "smollm3": Family("smollm3", windows=True),
    "granite": Family(
        "granite", scale=("attention_multiplier", 1.0), input_scale="embedding_multiplier", divisor="logits_scaling"
    ),
    "gemma2": Family(
        "gemma2", windows=True, scale=("query_pre_attn_scalar", -0.5), cap="attn_logit_softcapping",
        input_scale="sqrt", logit_cap="final_logit_softcapping",
    ),
    "gemma3_text": Family(
        "gemma3_text", windows=True, scale=("query_pre_attn_scalar", -0.5), logit_cap="final_logit_softcapping"
    ),
}  # fmt: skip

# families that fail a check of `kava model check`: its name, and why
REFUSED = dict.fromkeys(
    ("qwen3_5", "qwen3_5_text"), ("cache", "its layers of linear attention keep no keys and values")
)


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
        check, reason = REFUSED.get(str(model_type), ("", ""))
        text_part = getattr(config.get_text_config(), "model_type", None)
        if text_part != model_type and not reason:
            reason = f": it reads more than text (its language model, saved alone, would be {text_part!r})"
        raise ModelError(
            f"{where}: model family {model_type!r} is not supported"
            + (f" (check {check}): {reason}" if check else reason),
            "supported: " + ", ".join(sorted(FAMILIES)) + "; `kava model check` says what another family lacks",
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "use_bidirectional_attention", False):
        what = f"layers of the kind {', '.join(sorted(kinds))}" if kinds else "attention to later tokens"
        raise ModelError(f"{where}: {what} cannot be distilled: keys and values are those of causal attention")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or getattr(config, "reorder_and_upcast_attn", False):
        raise ModelError(f"{where}: GPT-2 variants with rescaled attention are not supported")
    return FAMILIES[model_type]


def windows_of(config: Any, family: Family) -> list[int | None]:
    """The attention window of each layer, in tokens with the token itself; None where a layer sees everything."""
    width = getattr(config, "sliding_window", None) if family.windows else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [width if kind == "sliding_attention" else None for kind in kinds]


def rotated_alike(config: Any) -> bool:
    """False if layers rotate their keys differently: other frequencies (Gemma 3), or in some layers none (SmolLM3)."""
    some_not = len(set(getattr(config, "no_rope_layers", None) or ())) > 1
    per_kind = getattr(config, "rope_local_base_freq", None) is not None or any(
        isinstance(part, dict) for part in (getattr(config, "rope_parameters", None) or {}).values()
    )
    return not (some_not or (per_kind and len(set(getattr(config, "layer_types", None) or ())) > 1))
