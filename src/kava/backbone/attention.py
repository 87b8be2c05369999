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

from kava.shapes import at_least_float32, soft_cap

NAME = "kava"
SLOT = "_kava_call"  # attribute with the call, for decoders that drop keywords (GPT-2 before transformers 5)

KV = list[tuple[Tensor, Tensor]]  # per layer: keys, values [B, H, T, D]


@dataclass
class Call:
    """Input and output of every attention layer in one forward pass; keys and queries are already rotated.

    `masks`: by layer, the masks of layers with an attention window; the others use the decoder's.
    """

    prefix: KV | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)
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
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q [prefix k, k]^T) [prefix v, v] under a bool mask with a True in every row; logits capped by `softcap`."""
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
    mask = call.masks.get(layer, attention_mask)
    if softcap is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    else:
        assert mask is not None
        out = F.dropout(capped_weights(query, key, mask, scaling or query.shape[-1] ** -0.5, softcap), dropout) @ value
    return out.transpose(1, 2).contiguous(), None


def capped_weights(query: Tensor, key: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    """Attention weights [B, H, T, P + T] with logits of at most `cap`; sdpa has no such argument."""
    logits = soft_cap(query @ key.transpose(2, 3) * scale, cap)
    wide = at_least_float32(logits.masked_fill(~mask, torch.finfo(logits.dtype).min))
    return torch.softmax(wide, dim=-1).to(query.dtype)


AttentionInterface.register(NAME, kava_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
