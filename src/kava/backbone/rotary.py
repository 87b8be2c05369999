"""Reads the rotary embedding of a model's decoder."""

from typing import Any

import torch

from kava.align.rope import Rotary
from kava.errors import ModelError


@torch.no_grad()
def read_rotary(embedding: Any, where: str) -> Rotary:
    """A transformers rotary embedding as a `Rotary`; the half-split layout is assumed."""
    limit = _limit(embedding)
    # length-dependent frequencies: an earlier text may have changed the current ones
    name = "inv_freq" if limit is None else "original_inv_freq"
    inv_freq = getattr(embedding, name, None)
    if inv_freq is None:
        raise ModelError(
            f"{where}: the rotary embedding ({type(embedding).__name__}) has no frequencies that hold for all layers",
            "choose a model of another family",
        )
    return Rotary(inv_freq.detach().float().cpu().clone(), float(getattr(embedding, "attention_scaling", 1.0)), limit)


def _limit(embedding: Any) -> int | None:
    """The number of tokens up to which length-dependent frequencies keep their first values; None for others."""
    kind = getattr(embedding, "rope_type", "default")
    if kind == "longrope":
        config = embedding.config
        settings = getattr(config, "rope_parameters", None) or config.rope_scaling
        return int(settings.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return int(embedding.original_max_seq_len) if "dynamic" in kind else None
