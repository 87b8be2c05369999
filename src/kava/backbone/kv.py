"""One forward pass of a decoder over a KV prefix, and its queries, keys, values and hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.align import rope
from kava.backbone.attention import KV, SLOT, Call
from kava.backbone.families import Family


@dataclass(frozen=True)
class Pass:
    """hidden [B, T, E] after the final norm; per layer queries [B, H*R, T, D], keys and values [B, H, T, D] of this
    pass's own tokens; `layers` the hidden states after layers 1..L (the last one normed), if requested."""

    hidden: Tensor
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    layers: tuple[Tensor, ...] | None = None

    def kv(self, columns: slice) -> KV:
        """Keys and values of a range of this pass's tokens, as a prefix for a later pass."""
        return [(k[:, :, columns], v[:, :, columns]) for k, v in zip(self.keys, self.values, strict=True)]


def run_decoder(
    decoder: Any,
    family: Family,
    embeds: Tensor,
    positions: Tensor,
    mask: Tensor,
    prefix: KV | None = None,
    all_layers: bool = False,
) -> Pass:
    """Runs embeds [B, T, E] at `positions` under the bool mask [B, 1, T, P + T]; gradients reach the prefix."""
    call = Call(prefix)
    slots = [] if keywords_arrive(family) else [block.attn for block in decoder.h]
    for module in slots:
        setattr(module, SLOT, call)
    try:
        out = decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=all_layers,
            **({} if slots else {"kava_call": call}),
        )
    finally:
        for module in slots:
            delattr(module, SLOT)
    order = range(len(call.keys))
    return Pass(
        hidden=out.last_hidden_state,
        queries=[call.queries[i] for i in order],
        keys=[call.keys[i] for i in order],
        values=[call.values[i] for i in order],
        layers=tuple(out.hidden_states[1:]) if all_layers else None,
    )


def keywords_arrive(family: Family) -> bool:
    """False for GPT-2 before transformers 5, which does not pass keywords on to attention."""
    import transformers

    return family.name != "gpt2" or int(transformers.__version__.split(".")[0]) >= 5


def join(*parts: KV) -> KV:
    """Concatenates prefixes along the tokens."""
    return [
        (torch.cat([k for k, _ in layer], dim=2), torch.cat([v for _, v in layer], dim=2))
        for layer in zip(*parts, strict=True)
    ]


def unrotate(keys: Tensor, decoder: Any, positions: Tensor) -> Tensor:
    """Keys [B, H, T, D] without the decoder's rotation at `positions` [B, T]."""
    cos, sin = (part.unsqueeze(1) for part in decoder.rotary_emb(keys, positions))
    return rope.unrotate(keys, cos, sin)
