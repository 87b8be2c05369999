"""Reads keys and values from any model's cache and reports their sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kava.align.aggregate import Aggregator
from kava.backbone.attention import KV, NAME
from kava.errors import ConfigError, ModelError


class KVVectors(NamedTuple):
    """Keys and values [B, T, dim]."""

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.keys.shape


@dataclass(frozen=True)
class KVReport:
    """Measured sizes of a cache; if layers differ, `num_heads`, `head_dim` and `layer_dim` are those of the first.

    `total_dim` sums heads x head size over all layers: the width of a concat. `config_dim`: the hidden size in the
    model's config, None without a model. `layers_consistent`: keys and values of all layers have one shape.
    """

    num_layers: int
    batch_size: int
    num_heads: int
    seq_length: int
    head_dim: int
    layer_dim: int
    total_dim: int
    dtype: torch.dtype
    device: str
    layers_consistent: bool
    config_dim: int | None = None

    @property
    def mismatch(self) -> bool:
        return self.config_dim is not None and self.config_dim != self.total_dim

    def text(self, name: str) -> str:
        """The report in lines."""
        lines = [f"[KV Structure Analysis] ({name}):"]
        lines += [f"   {field}: {value}" for field, value in vars(self).items() if field != "config_dim"]
        if self.config_dim is not None:
            lines += ["", f"   Config dimension: {self.config_dim}", f"   Detected dimension: {self.total_dim}"]
        if self.mismatch:
            lines.append(f"   [WARNING]  Dimension mismatch! Using detected: {self.total_dim}")
        return "\n".join(lines)


class KVExtractor(nn.Module):
    """Reduces caches to one vector per token. The method weighted has one trained set of layer weights per model name,
    created by the first call of `extract_kv` or `aggregator`, which must come before the optimiser is made."""

    def __init__(self, aggregation_method: str = "concat", use_all_layers: bool = True):
        super().__init__()
        Aggregator(aggregation_method)  # refuses an unknown method now
        self.method, self.use_all_layers = aggregation_method, use_all_layers
        self.aggregators = nn.ModuleDict()

    def extract_kv(self, past_key_values: Any, model_name: str = "model", debug: bool = False) -> KVVectors:
        """Keys and values [B, T, dim] of a cache, with gradients. `debug` prints the sizes."""
        layers = read_cache(past_key_values)
        if debug:
            print(structure(layers).text(model_name))
        aggregator = self.aggregator(model_name, len(layers))
        return KVVectors(aggregator([k for k, _ in layers]), aggregator([v for _, v in layers]))

    def aggregator(self, model_name: str, num_layers: int) -> Aggregator:
        """The aggregator of a model."""
        if self.method != "weighted":
            return Aggregator(self.method, num_layers, self.use_all_layers)
        key = "of_" + model_name.replace(".", "_")  # a module's name has no dot
        if key not in self.aggregators:
            self.aggregators[key] = Aggregator(self.method, num_layers, self.use_all_layers)
        aggregator = self.aggregators[key]
        if aggregator.num_layers != num_layers:
            raise ModelError(
                f"{model_name!r} had {aggregator.num_layers} layers before and has {num_layers} now",
                "give every model a model_name of its own",
            )
        return aggregator  # type: ignore[return-value]


def create_kv_extractor(aggregation_method: str = "concat", use_all_layers: bool = True) -> KVExtractor:
    """An extractor with concat, mean or weighted over all layers, or of the last layer alone."""
    return KVExtractor(aggregation_method, use_all_layers)


def probe(model: Any, length: int = 32) -> KVReport:
    """The sizes of a model's cache, measured with one random (1, `length`) batch; the model is not changed."""
    if length < 1:
        raise ConfigError(f"a probe needs at least one token, got length={length}")
    embedding = model.get_input_embeddings().weight
    ids = torch.randint(0, embedding.shape[0], (1, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(embedding.device)
    with _at_rest(model), torch.no_grad():
        # an explicit cache: the default one of sliding-window models drops the first tokens
        cache = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    config = model.config.get_text_config()
    return structure(read_cache(cache), getattr(config, "hidden_size", None))


def structure(layers: KV, config_dim: int | None = None) -> KVReport:
    """The sizes of per-layer keys and values."""
    first = layers[0][0]
    batch, heads, tokens, size = first.shape
    return KVReport(
        num_layers=len(layers),
        batch_size=batch,
        num_heads=heads,
        seq_length=tokens,
        head_dim=size,
        layer_dim=heads * size,
        total_dim=sum(keys.shape[1] * keys.shape[3] for keys, _ in layers),
        dtype=first.dtype,
        device=str(first.device),
        layers_consistent=all(part.shape == first.shape for layer in layers for part in layer),
        config_dim=config_dim,
    )


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """Puts a model into evaluation mode, with attention that needs no `Call`, while the block runs."""
    training = [module for module in model.modules() if module.training]
    ours = model.config._attn_implementation == NAME
    model.eval()
    try:
        if ours:
            model.set_attn_implementation("sdpa")
        yield
    finally:
        if ours:
            model.set_attn_implementation(NAME)
        for module in training:
            module.training = True


def read_cache(past_key_values: Any) -> KV:
    """Keys and values [B, H, T, D] per layer, of a cache with layers or an iterable of tuples (k, v, ...)."""
    name = type(past_key_values).__name__
    inner = getattr(past_key_values, "self_attention_cache", past_key_values)  # encoder-decoder models have two
    if hasattr(inner, "layers"):
        layers = [_read_layer(layer, i, name) for i, layer in enumerate(inner.layers)]
    elif isinstance(inner, (tuple, list)) or hasattr(inner, "__iter__"):
        layers = [_read_pair(pair, i, name) for i, pair in enumerate(inner)]
    else:
        raise ModelError(
            f"a {name} holds no keys and values",
            "run the model with use_cache=True, and without gradient checkpointing; a model without attention has none",
        )
    if not layers:
        raise ModelError(
            f"the {name} is empty", "run the model with use_cache=True, and without gradient checkpointing"
        )
    return layers


def _read_layer(layer: Any, index: int, cache: str) -> tuple[Tensor, Tensor]:
    keys, values = _read_pair((getattr(layer, "keys", None), getattr(layer, "values", None)), index, cache, layer)
    length, held = int(layer.get_seq_length()), keys.shape[2]
    if length > held:
        raise ModelError(
            f"layer {index} of the {cache} ({type(layer).__name__}) shows {held} of its {length} tokens",
            "run the model with past_key_values=DynamicCache(): no sliding window, no quantised cache",
        )
    return keys[:, :, :length], values[:, :, :length]  # a cache of fixed size ends in empty slots


def _read_pair(pair: Any, index: int, cache: str, layer: Any = None) -> tuple[Tensor, Tensor]:
    parts = pair[:2] if isinstance(pair, (tuple, list)) else ()
    if len(parts) < 2 or not all(isinstance(part, Tensor) and part.dim() == 4 for part in parts):
        kind = "" if layer is None else f" ({type(layer).__name__})"
        raise ModelError(
            f"layer {index} of the {cache}{kind} holds no keys and values [B, H, T, D]",
            "run the model with use_cache=True; a layer without attention has none",
        )
    return parts[0], parts[1]
