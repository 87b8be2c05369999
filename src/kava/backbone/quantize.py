"""Quantised frozen models: 4-bit NF4 or 8-bit integers, through the optional bitsandbytes."""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from kava.errors import ModelError
from kava.registry import check_known

KINDS = ("none", "nf4", "int8")


def quantization_config(kind: str, device: str | torch.device | None = None) -> Any:
    """The argument of from_pretrained(quantization_config=...); None for "none". `device`: where the model will run.

    nf4: 4-bit NormalFloat with double quantisation, computed in `compute_dtype`. int8: LLM.int8().
    """
    check_known("quantization", kind, KINDS)
    if kind == "none":
        return None
    try:
        version("bitsandbytes")
    except PackageNotFoundError as error:
        raise ModelError(
            f"quantization {kind} needs the package bitsandbytes, which is not installed",
            'pip install "bitsandbytes>=0.46.1", or set teacher.quantization=none',
        ) from error
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        # silence its warning, at every product, that the input is cast
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(device),
    )


def compute_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """bfloat16 on a GPU that has it (compute capability 8 and above), float16 on an older one, float32 elsewhere."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
