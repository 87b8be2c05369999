"""References of the benchmarks: random models of any size, the library's own generation, and eager attention that keeps
its logits and probabilities, as older code does."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kava.backbone.attention import NAME, Call
from kava.backbone.families import FAMILIES
from kava.backbone.kv import Pass
from kava.backbone.model import LatentModel
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig

EAGER = "kava_eager"


def random_model(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    latent: LatentConfig,
    family: str = "llama",
    std: float = 0.02,
    seed: int = 0,
) -> LatentModel:
    """A LatentModel around an untrained model of a family; its last three tokens are the special ones.

    `std` is the weights' standard deviation; with the usual 0.02 a small model's attention is nearly uniform.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        initializer_range=std,
        tie_word_embeddings=True,
        use_cache=False,
    )
    lm = AutoModelForCausalLM.from_config(config)
    lm.set_attn_implementation(NAME)
    special = SpecialTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return LatentModel(lm, FAMILIES[family], special, latent, use_projection=True)


def library_twin(model: LatentModel) -> Any:
    """A plain model of transformers that shares the same weights and uses the library's own attention and cache."""
    lm = model.causal_lm
    shared = {id(part): part for part in (*lm.parameters(), *lm.buffers())}
    twin = copy.deepcopy(lm, shared)
    twin.set_attn_implementation("sdpa")
    twin.config.use_cache = True
    return twin.eval()


@torch.inference_mode()
def library_generate(twin: Any, ids: Tensor, mask: Tensor, eos: int, limit: int) -> list[list[int]]:
    """The tokens that `generate` of transformers adds to each row, greedily, eos included; ids, mask [B, T].

    The checkpoint's own generation settings (sampling, penalties, other end tokens) are ignored.
    """
    twin.generation_config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=eos, pad_token_id=eos, use_cache=True
    )
    order = mask.to(torch.int8).argsort(dim=1, stable=True)  # padding to the left, as the library wants it
    out = twin.generate(ids.gather(1, order), attention_mask=mask.gather(1, order).long())
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@dataclass
class EagerCall(Call):
    """Also holds each layer's logits and probabilities [B, H*R, T, T]."""

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
    """softmax(q k^T) v with every matrix materialized, which transformers calls eager."""
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
        [by_layer[i] for i in order] for by_layer in (call.queries, call.keys, call.values, call.logits)
    )
    return Pass(out.last_hidden_state, queries, keys, values, tuple(out.hidden_states[1:])), logits


AttentionInterface.register(EAGER, eager_attention)
AttentionMaskInterface.register(EAGER, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
