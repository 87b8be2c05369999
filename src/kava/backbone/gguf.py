"""A model in one .gguf file: config, tokenizer and weights, which transformers reads and dequantises."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm
from transformers.utils import is_gguf_available

from kava.backbone.cached import gguf_problem
from kava.config import ModelConfig
from kava.errors import ConfigError, ModelError

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")


def check_gguf(model: ModelConfig) -> None:
    """Refuses a .gguf file without the package that reads it, and a part of one: the other parts would not be read."""
    if _PART.search(str(model.gguf_file)):
        raise ModelError(
            f"{model.gguf_file} of model {model.name!r} is one part of a split file, of which transformers reads no other",
            "join the parts: llama-gguf-split --merge (llama.cpp)",
        )
    if not is_gguf_available():
        raise ModelError(f"{model.gguf_file} of model {model.name!r} needs the package gguf", "pip install gguf")


def refuse_gguf(name: str, folder: Path, gguf_file: str | None) -> None:
    """Refuses a model's folder without the named .gguf file, or with nothing but .gguf files and none named."""
    if gguf_file is not None:
        if problem := gguf_problem(folder, gguf_file):
            raise ModelError(f"model {name!r}: {problem}", "name one of them as gguf_file, or leave gguf_file out")
    elif not (folder / "config.json").is_file() and (files := sorted(file.name for file in folder.glob("*.gguf"))):
        problem = f"model {name!r}: the folder has no config.json, but .gguf files: {', '.join(files)}"
        raise ModelError(problem, f"to read one of them: gguf_file={files[0]} beside the model's name")


def reader(kind: Any, model: ModelConfig) -> Callable[..., Any]:
    """The function that reads a model's config, tokenizer or weights, `kind` of transformers' classes."""
    if model.gguf_file is None:
        return kind.from_pretrained  # type: ignore[no-any-return]
    check_gguf(model)
    if kind is transformers.AutoModelForCausalLM:
        return partial(load_dequantised, model)
    return partial(kind.from_pretrained, gguf_file=model.gguf_file)


def load_dequantised(model: ModelConfig, source: str | Path, **options: Any) -> Any:
    """A causal LM with the weights of model.gguf_file in `dtype`: trainable, and saved like any other."""
    if "quantization_config" in options:
        raise ConfigError(
            f"model {model.name!r}: the weights of {model.gguf_file} are dequantised, and cannot be quantised again",
            "set quantization to none, or leave gguf_file out and name a model with weights in safetensors",
        )
    if hasattr(transformers, "GgufConfig"):  # before it, transformers always dequantised
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    from transformers import modeling_gguf_pytorch_utils  # imports the tokenizers of many families

    # its own bar is not ASCII, and no setting of the library turns it off
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=True)
    lm, info = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=model.gguf_file, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    unlike = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
    for names, fault in ((info["missing_keys"], "lacks"), (unlike, "has other sizes of")):  # these would be random
        if names:
            raise ModelError(
                f"{model.gguf_file} of model {model.name!r} {fault} {len(names)} weights, the first is {min(names)}",
                "use another file",
            )
    return _as_unquantised(lm)


def _as_unquantised(lm: Any) -> Any:
    """The model without the marks of its reader, which would forbid training, moving and saving it."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(lm).pop(name, None)
    vars(lm.config).pop("quantization_config", None)
    return lm
