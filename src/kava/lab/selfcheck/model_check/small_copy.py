"""A small random copy of a model, from its config: every kind of layer it has, few of them, and narrow."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

HEAD_SIZE, VOCABULARY, WINDOW = 16, 64, 8
PER_KIND = 2  # layers of each kind
SMALL = {
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
DROPPED = ("quantization_config", "auto_map", "architectures", "torch_dtype", "dtype")


def small_config(config: Any, force_window: bool = False) -> Any:
    """The config with few, narrow layers; windows are WINDOW tokens wide. `force_window`: also where it has none."""
    values = {name: value for name, value in config.to_dict().items() if name not in DROPPED}
    names = getattr(config, "attribute_map", {})

    def change(name: str, value: Any) -> None:
        values[names.get(name, name)] = value

    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    few = min(kv_heads, 2)
    few_heads = few * max(1, min(heads // kv_heads, 2))
    change("num_attention_heads", few_heads)
    change("hidden_size", few_heads * HEAD_SIZE + (0 if heads * size == config.hidden_size else HEAD_SIZE))
    for name, value in {"num_key_value_heads": few, "head_dim": HEAD_SIZE, **SMALL}.items():
        if getattr(config, name, None) is not None:
            change(name, value)
    change("vocab_size", VOCABULARY)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        change(name, None)
    _fewer_layers(values, names, config.num_hidden_layers)
    _shorter_factors(values)
    if values.get("sliding_window") is not None or force_window:
        values["sliding_window"] = WINDOW
    if force_window:
        _with_windows(values, names)
    return type(config).from_dict(values)


def _fewer_layers(values: dict[str, Any], names: dict[str, str], layers: int) -> None:
    """Keeps PER_KIND layers of each kind, in their order; lists with an entry per layer say which kinds there are."""
    per_layer = {name: value for name, value in values.items() if isinstance(value, list) and len(value) == layers}
    kinds = [tuple(str(value[layer]) for value in per_layer.values()) for layer in range(layers)]
    kept = [layer for layer, kind in enumerate(kinds) if kinds[:layer].count(kind) < PER_KIND]
    values.update({name: [value[layer] for layer in kept] for name, value in per_layer.items()})
    values[names.get("num_hidden_layers", "num_hidden_layers")] = len(kept)


def _shorter_factors(values: dict[str, Any]) -> None:
    """Cuts the factors of longrope, one for each pair of rotated dimensions, to the small head."""
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := values.get(name), dict):
            share = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
            pairs = int(HEAD_SIZE * share) // 2
            factors = {key: value[:pairs] for key, value in rope.items() if key in ("short_factor", "long_factor")}
            values[name] = rope | factors


def _with_windows(values: dict[str, Any], names: dict[str, str]) -> None:
    """Switches windows on, in every second layer where layers have kinds."""
    if "use_sliding_window" in values:
        values["use_sliding_window"] = True
    if values.get("layer_types"):
        layers = values[names.get("num_hidden_layers", "num_hidden_layers")]
        values["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]


@torch.no_grad()
def random_copy(config: Any, force_window: bool = False) -> Any:
    """A causal LM of `small_config` in float64. Its weights are large enough that attention is far from even, and no
    vector (a norm's weight, a bias) is constant."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(small_config(config, force_window), dtype=torch.float64)
        for weight in {id(weight): weight for weight in lm.parameters()}.values():
            if weight.ndim > 1:
                weight.normal_(std=1.4 * lm.config.hidden_size**-0.5)
            else:
                weight.add_(0.2 * torch.randn_like(weight))
    for part in lm.modules():  # rotary frequencies are float32 in every model; transformers 4.57 casts them here
        for name, buffer in part.named_buffers(recurse=False):
            if "inv_freq" in name:
                setattr(part, name, buffer.float())
    return lm.eval()
