"""For benchmarks: a random model of any size, and attention that keeps its logits and probabilities, as older code does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kava.backbone.attention import NAME, Call
from kava.backbone.families import FAMILIES
from kava.backbone.kv import Pass
from kava.backbone.model import LatentModel
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig

EAGER = "kava_eager"


def random_llama(
    layers: int, width: int, heads: int, kv_heads: int, vocabulary: int, latent: LatentConfig, seed: int = 0
) -> LatentModel:
    """A LatentModel around an untrained Llama; its last three tokens are the special ones."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        use_cache=False,
    )
    lm = LlamaForCausalLM(config)
    lm.set_attn_implementation(NAME)
    special = SpecialTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return LatentModel(lm, FAMILIES["llama"], special, latent, use_projection=True)


@dataclass
class EagerCall(Call):
    """Also brings back each layer's logits and probabilities [B, H*R, T, T]."""

    logits: dict[int, Tensor] = field(default_factory=dict)
    probabilities: dict[int, Tensor] = field(default_factory=dict)


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    kava_call: EagerCall,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T) v with every matrix made, what transformers calls eager."""
    layer = module.layer_idx
    kava_call.queries[layer], kava_call.keys[layer], kava_call.values[layer] = query, key, value
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    kava_call.logits[layer], kava_call.probabilities[layer] = logits, probabilities
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def run_eager(model: LatentModel, embeds: Tensor, positions: Tensor, mask: Tensor) -> tuple[Pass, list[Tensor]]:
    """LatentModel.run without a prefix, and every layer's logits [B, H*R, T, T]."""
    call = EagerCall()
    model.causal_lm.set_attn_implementation(EAGER)
    try:
        out = model.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            kava_call=call,
        )
    finally:
        model.causal_lm.set_attn_implementation(NAME)
    order = range(len(call.keys))
    queries, keys, values, logits = (
        [found[i] for i in order] for found in (call.queries, call.keys, call.values, call.logits)
    )
    return Pass(out.last_hidden_state, queries, keys, values, tuple(out.hidden_states[1:])), logits


AttentionInterface.register(EAGER, eager_attention)
AttentionMaskInterface.register(EAGER, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
