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

from kava.backbone.branches import Branch
from kava.shapes import at_least_float32, soft_cap

NAME = "kava"
SLOT = "_kava_call"  # attribute with the call, for decoders that drop keywords (GPT-2 before transformers 5)

KV = list[tuple[Tensor, Tensor]]  # per layer: keys, values [B, H, T, D]


@dataclass
class Call:
    """Input and output of every attention layer in one forward pass; keys and queries are already rotated.

    `branches`: by layer, since some have an attention window; together they cover the pass's columns in order.
    `joined`: by layer, keys and values of the prefix and of this pass in one; None: they are not kept.
    """

    branches: list[tuple[Branch, ...]]
    prefix: KV | None = None
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    joined: dict[int, tuple[Tensor, Tensor]] | None = None


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
    """softmax(q [prefix k, k]^T) [prefix v, v], branch by branch; logits capped by `softcap`.

    The decoder's own mask is not read: what a column attends to is in the call.
    """
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
    if call.joined is not None:
        call.joined[layer] = key, value
    outs = []
    for branch in call.branches[layer]:
        own, keys, values = query[:, :, branch.columns], branch.of(key), branch.of(value)
        if softcap is None:
            causal = branch.mask is None
            outs.append(grouped_attention(own, keys, values, branch.mask, dropout, scaling, causal))
        else:
            weights = capped_weights(own, keys, branch.dense(own.device), scaling or own.shape[-1] ** -0.5, softcap)
            outs.append((by_group(F.dropout(weights, dropout), keys) @ values).view(*own.shape[:3], values.shape[-1]))
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    return out.transpose(1, 2).contiguous(), None


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """[B, H*R, T, D] for query [B, H*R, T, D], key and value [B, H, S, D] and a mask that all heads share, or `causal`
    (T = S); keys and values are repeated for the R queries of a group only where the device has no fast kernel that reads
    them in place."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.shape[2] == 1:  # queries of a group are rows over the same keys: one product, not R
        out = F.scaled_dot_product_attention(by_group(query, key), key, value, mask, dropout, scale=scale)
        return out.reshape(*query.shape[:3], value.shape[-1])
    in_place = groups == 1 or mask is None or query.device.type == "cpu"
    if not in_place:  # of CUDA's kernels only the slowest, which keeps all weights, takes groups under a mask
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, causal, scale=scale, enable_gqa=in_place and groups > 1
    )


def capped_weights(query: Tensor, key: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    """Attention weights [B, H*R, T, S] of key [B, H, S, D] with logits of at most `cap`; sdpa has no such argument."""
    logits = soft_cap(by_group(query, key) @ key.transpose(2, 3) * scale, cap)
    logits = logits.view(*query.shape[:3], key.shape[2])
    wide = at_least_float32(logits.masked_fill(~mask, torch.finfo(logits.dtype).min))
    return torch.softmax(wide, dim=-1).to(query.dtype)


def by_group(rows: Tensor, key: Tensor) -> Tensor:
    """rows [B, H*R, T, *] of query heads as [B, H, R*T, *]: those that read the same head of key [B, H, S, D] together."""
    return rows.reshape(len(rows), key.shape[1], -1, rows.shape[-1])


AttentionInterface.register(NAME, kava_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
