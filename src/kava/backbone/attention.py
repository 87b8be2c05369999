"""The one attention function: attends to a KV prefix and records this pass's queries, keys and values.

It is registered with transformers under the name "kava" and gets its `Call` through a keyword of the decoder's
forward. That works with gradient checkpointing, LoRA and DDP, where caches stay empty and hooks fire twice.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "kava"
SLOT = "_kava_call"  # attribute with the call, for decoders that drop keywords (GPT-2 before transformers 5)

KV = list[tuple[Tensor, Tensor]]  # per layer: keys, values [B, H, T, D]


@dataclass
class Call:
    """Input and output of every attention layer in one forward pass; keys and queries are already rotated."""

    prefix: KV | None = None
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


def kava_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kava_call: Call | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q [prefix k, k]^T) [prefix v, v] under a bool mask with a True in every row."""
    layer = module.layer_idx
    call = kava_call if kava_call is not None else getattr(module, SLOT, None)
    if call is None:
        raise RuntimeError("the 'kava' attention was reached without its call; run the decoder through Backbone.run()")
    if layer not in call.keys:  # checkpointing recomputes the layer: keep the first result, which is in the graph
        call.queries[layer], call.keys[layer], call.values[layer] = query, key, value
    if call.prefix is not None:
        prefix_key, prefix_value = call.prefix[layer]
        key = torch.cat([prefix_key, key], dim=2)
        value = torch.cat([prefix_value, value], dim=2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, kava_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
