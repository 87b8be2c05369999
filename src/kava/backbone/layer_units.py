"""Decoder layers as units that FSDP shards one by one: what a layer hands to a pass leaves through its output.

FSDP gathers a layer's weights when the layer is called, and again in the backward pass, when a gradient reaches a tensor of
the layer's output. Keys and values that left by the side (`Call`) would bring a gradient to weights that are not there.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kava.backbone.attention import Call
from kava.backbone.kv import keywords_arrive
from kava.backbone.model import UNIT_LAYER, Backbone
from kava.errors import ModelError


class LayerUnit(nn.Module):
    """A decoder layer. FSDP sees (hidden, queries, keys, values) leave it; the decoder gets what the layer returns."""

    def __init__(self, layer: nn.Module, index: int):
        super().__init__()
        self.unit_layer, self.index = layer, index

    def __call__(self, *inputs: Any, kava_call: Call, **named: Any) -> Any:
        """The layer's own output; its queries, keys and values go into `kava_call`."""
        i = self.index
        prefix = {} if kava_call.prefix is None else {i: kava_call.prefix[i]}

        def own_call(prefix: dict[int, tuple[Tensor, Tensor]]) -> Call:  # a function, into which FSDP does not look
            return replace(kava_call, prefix=prefix or None, queries={}, keys={}, values={})  # type: ignore[arg-type]

        out, *entries = super().__call__(inputs, named, prefix, own_call)
        for record, entry in zip((kava_call.queries, kava_call.keys, kava_call.values), entries, strict=True):
            record[i] = entry
        return out

    def forward(
        self,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        prefix: dict[int, tuple[Tensor, Tensor]],
        own_call: Callable[[Any], Call],
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        call, i = own_call(prefix), self.index
        out = self.unit_layer(*inputs, kava_call=call, **named)
        return out, call.queries[i], call.keys[i], call.values[i]

    def __getattr__(self, name: str) -> Any:
        """Decoders read attributes of their layers, as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(UNIT_LAYER), name)


def layers_of(decoder: nn.Module) -> nn.ModuleList:
    """The list of a decoder's layers, its longest list."""
    return max((part for part in decoder.modules() if isinstance(part, nn.ModuleList)), key=len)


def into_units(model: Backbone) -> list[LayerUnit]:
    """Puts a unit around each decoder layer of `model`, in place."""
    if not keywords_arrive(model.family):
        problem = f"{model.family.name} on this transformers (before 5) cannot be sharded layer by layer"
        raise ModelError(problem, "update transformers, or set system.sharding=fsdp2_whole")
    layers = layers_of(model.decoder)
    for i, layer in enumerate(layers):
        layers[i] = LayerUnit(layer, i)
    return list(layers)  # type: ignore[arg-type]


def out_of_units(model: Backbone) -> None:
    """Puts the plain layers back."""
    layers = layers_of(model.decoder)
    for i, unit in enumerate(layers):
        layers[i] = unit.unit_layer if isinstance(unit, LayerUnit) else unit
