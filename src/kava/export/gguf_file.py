"""`kava export CHECKPOINT --gguf FILE`: a student for llama.cpp, and beside it FILE with .npz, what thinking needs.

The .gguf file has the merged model under llama.cpp's names and no tokenizer: token ids go in and out. The .npz file has the
projection, the numbers of latent_head.json and tokenizer.json; `examples/engines/llama_cpp_latents.py` reads both.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.backbone.plain import merge
from kava.errors import ConfigError, ModelError
from kava.export.head import head_settings, projection_weights
from kava.files import open_partial, replace_file, write_bytes
from kava.infer.student import Student

DTYPES = {"float32": 0, "float16": 1}  # llama.cpp's numbers of file types
Change = Callable[[str, Tensor, Any], Tensor]


def _interleaved(name: str, weight: Tensor, config: Any) -> Tensor:
    """Rows of q and k in llama.cpp's order for Llama, which rotates neighbours where transformers rotates halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _transposed(name: str, weight: Tensor, config: Any) -> Tensor:
    """GPT-2 keeps the weights of its linear layers as [in, out]."""
    return weight.t() if weight.ndim == 2 and name.rsplit(".", 2)[-2] in ("c_attn", "c_proj", "c_fc") else weight


def _same(name: str, weight: Tensor, config: Any) -> Tensor:
    return weight


@dataclass(frozen=True)
class GgufFamily:
    """arch: llama.cpp's name. change: a weight as it is stored there. stretched: it reads factors of the rotary angles."""

    arch: str
    change: Change = _same
    stretched: bool = False


FAMILIES = {
    "llama": GgufFamily("llama", _interleaved, stretched=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "gpt2": GgufFamily("gpt2", _transposed),
}


def check_gguf(dtype: str | None) -> None:
    """Refuses what cannot be written, before anything is loaded."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--gguf: --dtype {dtype} is not written", "take " + " or ".join(DTYPES))
    _library()


def write_gguf(student: Student, path: Path, dtype: str | None = None) -> tuple[Path, Path]:
    """Writes the two files and returns their places. Merges the student's adapters in place."""
    if student.model.family.name not in FAMILIES:
        problem = f"--gguf: the family {student.model.family.name} is not written yet"
        raise ModelError(problem, "known: " + ", ".join(FAMILIES))
    gguf, settings, lm = _library(), head_settings(student), merge(student.model)
    family, config = FAMILIES[student.model.family.name], lm.config
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    file, partial = open_partial(path)
    file.close()
    try:
        writer = gguf.GGUFWriter(partial, family.arch)
        _write_facts(writer, student, lm, DTYPES[dtype or "float32"])
        if (factors := _rotary_factors(student, family)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for name, weight in lm.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if stored is None:
                raise ModelError(f"--gguf: llama.cpp has no place for {name}", "report it")
            value = family.change(name, weight.detach().float(), config).contiguous().cpu()
            small = dtype == "float16" and value.ndim == 2 and not stored.startswith("position")
            writer.add_tensor(stored, (value.half() if small else value).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    beside = path.with_suffix(".npz")
    write_bytes(beside, _head_file(student, settings))
    return path, beside


def _write_facts(writer: Any, student: Student, lm: Any, file_type: int) -> None:
    config, shape = lm.config, student.model.kv_shape
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(lm.get_input_embeddings().weight.shape[0])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(shape.num_layers)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(shape.num_heads)
    if not student.model.family.rotary:
        writer.add_feed_forward_length(config.n_inner or 4 * shape.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_freq_base(_base(config))


def _base(config: Any) -> float:
    return float(getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"])


def _rotary_factors(student: Student, family: GgufFamily) -> np.ndarray | None:
    """What llama.cpp divides each rotary frequency by; None where the frequencies are the plain ones."""
    if not student.model.family.rotary:
        return None
    embedding, size = student.model.decoder.rotary_emb, student.model.kv_shape.head_size
    own = embedding.inv_freq.float().cpu()
    plain = _base(student.model.config) ** (-torch.arange(0, size, 2).float() / size)
    if own.shape == plain.shape and torch.allclose(own, plain, rtol=1e-6) and embedding.attention_scaling == 1:
        return None
    if not family.stretched or own.shape != plain.shape or embedding.attention_scaling != 1:
        raise ModelError(f"--gguf: the scaled rotary embedding of this {family.arch} model is not written yet")
    return np.asarray((plain / own).numpy(), dtype=np.float32)


def _head_file(student: Student, settings: dict[str, Any]) -> bytes:
    arrays: dict[str, Any] = {
        name: weight.float().numpy() for name, weight in projection_weights(student.model).items()
    }
    texts = {"settings": json.dumps(settings), "tokenizer": student.tokenizer.backend_tokenizer.to_str()}
    arrays |= {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def gguf_of_ours(path: Path) -> bool:
    """Whether a file is a GGUF file without a tokenizer, as `write_gguf` writes it."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"GGUF") and b"no_vocab" in head


def head_of_ours(path: Path) -> bool:
    """Whether `write_gguf` wrote an .npz file."""
    with np.load(path, allow_pickle=False) as arrays:
        return {"settings", "tokenizer"} <= set(arrays.files)


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError("--gguf needs the package gguf", "pip install gguf") from error
    return gguf
