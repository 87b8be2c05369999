"""One vector per token from the keys (or the values) of all layers and heads."""

from typing import Protocol

import torch
from torch import Tensor, nn

from kava.errors import ConfigError, ModelError
from kava.registry import check_known
from kava.shapes import at_least_float32

METHODS = ("concat", "mean", "weighted")


class CacheSizes(Protocol):
    """Sizes of a model's KV cache."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...


def flatten_heads(entries: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H*D], head 0 first."""
    return entries.transpose(1, 2).flatten(2)


class Aggregator(nn.Module):
    """Per-layer entries [B, H, T, D] -> [B, T, dim].

    concat    layer 0 first: dim = L*H*D
    mean      over layers: dim = H*D
    weighted  sum_l softmax(w)_l x_l with trained w, all equal at the start: dim = H*D

    `use_all_layers` False takes the last layer alone, whatever the method.
    """

    weights: nn.Parameter | None

    def __init__(self, method: str = "concat", num_layers: int = 1, use_all_layers: bool = True):
        super().__init__()
        check_known("aggregation method", method, METHODS)
        if num_layers < 1:
            raise ConfigError(f"an aggregator needs at least one layer, got {num_layers}")
        self.method, self.num_layers, self.use_all_layers = method, num_layers, use_all_layers
        learned = method == "weighted" and use_all_layers and num_layers > 1
        self.register_parameter("weights", nn.Parameter(torch.zeros(num_layers)) if learned else None)

    def dim(self, shape: CacheSizes) -> int:
        """Width of the output for caches of this shape."""
        layer = shape.num_heads * shape.head_size
        return layer * shape.num_layers if self.method == "concat" and self.use_all_layers else layer

    def forward(self, layers: list[Tensor]) -> Tensor:
        if len(layers) != self.num_layers:
            raise ModelError(f"an aggregator of {self.num_layers} layers was given {len(layers)}")
        if not self.use_all_layers or len(layers) == 1:
            return flatten_heads(layers[-1])
        self._check(layers)
        device = layers[0].device  # a model spread over devices has its cache on several
        flat = [flatten_heads(layer).to(device) for layer in layers]
        if self.method == "concat":
            return torch.cat(flat, dim=-1)
        stack = torch.stack([at_least_float32(layer) for layer in flat])  # [L, B, T, H*D]
        if self.weights is None:
            return stack.mean(0).to(layers[0].dtype)
        share = torch.softmax(at_least_float32(self.weights), dim=0).to(stack)
        return torch.einsum("l,lbtd->btd", share, stack).to(layers[0].dtype)

    def _check(self, layers: list[Tensor]) -> None:
        tokens = sorted({layer.shape[2] for layer in layers})
        if len(tokens) > 1:
            raise ModelError(
                f"layers hold different numbers of tokens: {tokens}",
                "a sliding window drops the first ones; run the model with past_key_values=DynamicCache()",
            )
        sizes = sorted({(layer.shape[1], layer.shape[3]) for layer in layers})
        if len(sizes) > 1 and self.method != "concat":
            text = ", ".join(f"{heads} x {size}" for heads, size in sizes)
            raise ModelError(
                f"layers of unequal size (heads x head size: {text}) have no {self.method}",
                "use the aggregation method concat, or the last layer alone",
            )
