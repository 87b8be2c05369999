"""Tiny models of every family, built in memory with fixed seeds."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kava.backbone.attention import NAME
from kava.backbone.families import family_of
from kava.backbone.model import LatentModel
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig

VOCAB = 61
SPECIAL = SpecialTokens(bot=58, latent=59, eot=60)

_common = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 40}
_heads = {"num_attention_heads": 4, "max_position_embeddings": 256}
_gpt2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 256, "bos_token_id": 0,
         "eos_token_id": 0}  # fmt: skip
FAMILIES = {
    "llama-gqa": lambda **own: LlamaForCausalLM(LlamaConfig(**_common | _heads | {"num_key_value_heads": 2} | own)),
    "llama-mha": lambda **own: LlamaForCausalLM(LlamaConfig(**_common | _heads | {"tie_word_embeddings": True} | own)),
    "qwen2": lambda **own: Qwen2ForCausalLM(Qwen2Config(**_common | _heads | {"num_key_value_heads": 1} | own)),
    "qwen3": lambda **own: Qwen3ForCausalLM(
        Qwen3Config(**_common | _heads | {"num_key_value_heads": 2, "head_dim": 8} | own)
    ),
    "gpt2": lambda **own: GPT2LMHeadModel(GPT2Config(**_gpt2 | own)),
}
# configs as people have them, but for the size; `kava model check` makes its small copies of them
_checkpoint = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
               "num_key_value_heads": 4, "num_hidden_layers": 8, "pad_token_id": 0, "bos_token_id": 1,
               "eos_token_id": 2}  # fmt: skip
_longrope = {"type": "longrope", "short_factor": [1 + i / 10 for i in range(12)], "long_factor": [1.5] * 12}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gpt2": {"n_embd": 256, "n_layer": 8, "n_head": 8, "bos_token_id": 0, "eos_token_id": 0},
    "mistral": {"sliding_window": 4096, "head_dim": 64},
    "phi3": {"sliding_window": 2047},
    "phi4-mini": {"model_type": "phi3", "sliding_window": 262144, "partial_rotary_factor": 0.75,
                  "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                  "rope_scaling": _longrope},
    "olmo2": {},
    "smollm3": {},
    "granite": {"embedding_multiplier": 12.0, "attention_multiplier": 0.015, "residual_multiplier": 0.22,
                "logits_scaling": 8.0},
    "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 256},
    "gemma3_text": {"head_dim": 64, "query_pre_attn_scalar": 256, "sliding_window": 512, "num_hidden_layers": 12,
                    "final_logit_softcapping": 30.0},
}  # fmt: skip


def checkpoint_config(name: str) -> Any:
    """A config of CHECKPOINTS."""
    own = dict(CHECKPOINTS[name])
    return AutoConfig.for_model(own.pop("model_type", name), **({} if name == "gpt2" else _checkpoint) | own)


KEY_CONSTANTS = (800.0, 120.0, 14.0)  # norms by layer, as in Qwen2.5; what varies around them has about 20
KEY_SPREAD = 6.0


@torch.no_grad()
def plant_key_constants(model: Any) -> None:
    """Gives keys a large constant, as pretrained Qwen2 models have it: in the pair of dimensions that the rotary embedding
    turns least, where queries hardly look. Attention stays what it was, but for rounding and that glance."""
    size = model.config.hidden_size // model.config.num_attention_heads
    slow = [size // 2 - 1, size - 1]
    for layer, norm in zip(model.model.layers, itertools.cycle(KEY_CONSTANTS)):
        attention = layer.self_attn
        attention.k_proj.weight.mul_(KEY_SPREAD)
        for part in (attention.q_proj.weight, attention.q_proj.bias):
            part.div_(KEY_SPREAD).unflatten(0, (-1, size))[:, slow] *= 0.02
        attention.k_proj.bias.unflatten(0, (-1, size))[:, slow] += norm * 0.5**0.5


def causal_lm(family: str, seed: int = 0, dtype: torch.dtype = torch.float64, **own: object):
    """A random causal LM of the family (`own`: other sizes), dropout off unless trained with it, attention through kava."""
    torch.manual_seed(seed)
    model = FAMILIES[family](**own)
    for weight in model.parameters():  # larger than the usual start, so that attention is far from even
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    if family == "qwen2":
        plant_key_constants(model)
    model.set_attn_implementation(NAME)
    model = model.to(dtype).eval()
    return exact(model) if dtype == torch.float64 else model


class ExactNorm(torch.nn.Module):
    """RMSNorm all in float64: the families' own goes through float32, which hides differences below 1e-7."""

    def __init__(self, norm: torch.nn.Module):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps)


def exact(model):
    """The model with every RMSNorm replaced by ExactNorm."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                setattr(parent, name, ExactNorm(child))
    return model


def latent_model(family: str, use_projection: bool = True, dtype: torch.dtype = torch.float64, **latent) -> LatentModel:
    """A LatentModel around a tiny random backbone."""
    settings = LatentConfig(**{"num_tokens": 4, "num_iterations": 3, **latent})
    lm = causal_lm(family, dtype=dtype)
    torch.manual_seed(1)
    model = LatentModel(lm, family_of(lm.config, family), SPECIAL, settings, use_projection)
    return model.to(dtype).eval()


def batch(lengths=((5, 7, 2), (3, 2, 1), (6, 0, 3)), side: str = "right", seed: int = 0, cue: int = 3) -> dict:
    """A batch of random ids; each sample is (question, chain of thought, answer) lengths. Pads hold a real id, so that a
    pad that leaks shows."""
    generator = torch.Generator().manual_seed(seed)

    def segment(rows):
        width = max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), width), 7)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, place] = row
            mask[i, place] = True
        return ids, mask

    def draw(count):
        return torch.randint(8, 50, (count,), generator=generator)

    cue_ids = torch.arange(51, 51 + cue)
    samples = [(draw(q), draw(c), draw(a), torch.rand(c, generator=generator) < 0.4) for q, c, a in lengths]
    question, question_mask = segment([s[0] for s in samples])
    cot, cot_mask = segment([s[1] for s in samples])
    result, _ = segment([s[3].long() for s in samples])
    tail, tail_mask = segment([torch.cat([cue_ids, s[2], torch.tensor([1])]) for s in samples])
    first = tail_mask.int().argmax(1)
    column = torch.arange(tail.shape[1])
    answer = tail_mask & (column >= (first + cue)[:, None]) & (tail != 1)
    return {
        "question": question, "question_mask": question_mask,
        "cot": cot, "cot_mask": cot_mask, "cot_result": (result == 1) & cot_mask,
        "tail": tail, "tail_mask": tail_mask, "tail_answer": answer,
        "cue_last": first + cue - 1, "example_id": torch.arange(len(samples)) + 11 * seed,
    }  # fmt: skip
