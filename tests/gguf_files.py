"""A causal LM and a byte-level tokenizer as one .gguf file, written by the package gguf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

# Qwen's names in place of the tokenizer's own: transformers adds these tokens to a file that has them not
NAMES = {"<eos>": "<|endoftext|>", "<pad>": "<|im_start|>", "<bos>": "<|im_end|>"}


def write_gguf(lm, tokenizer, path: Path) -> None:
    """Qwen2 (no weight of it is stored in another order), every tensor in float32."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    config = lm.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    _write_tokens(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in lm.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokens(writer, tokenizer) -> None:
    ids = tokenizer.get_vocab()
    tokens = [NAMES.get(token, token) for token in sorted(ids, key=ids.get)]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in NAMES.values() else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
