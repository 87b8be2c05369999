"""A frozen causal language model of any family, read through the cache that it leaves: a teacher of a mixture.

What is not known of a family is measured before the first batch: the sizes of its cache, whether a token sees only those
before it, and where its positions are. A text that repeats one token tells the last: without positions in the hidden
states every place has the same value, and keys that differ by a rotary embedding alone become the same when un-rotated.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kava.align.rope import Rotary, scaled, unrotate
from kava.backbone.attention import KV
from kava.backbone.extractor import KVReport, read_cache, structure
from kava.backbone.families import Family
from kava.backbone.model import Backbone
from kava.backbone.rotary import read_rotary
from kava.errors import ConfigError, ModelError
from kava.shapes import at_least_float32

PROBE, SEEN = 8, 5  # tokens of a probe, and of its beginning
TELL = "take a causal language model with attention in every layer (Llama, Qwen, GPT-2, OPT, GPT-NeoX, ...)"


class Foreign(Backbone):
    """`positions` is learned (in the hidden states), rotary (then `rotary` says how) or none (nothing in keys)."""

    def __init__(self, lm: Any, where: str):
        super().__init__(lm, Family(getattr(lm.config, "model_type", "") or type(lm).__name__, rotary=False))
        self.where = where
        self._takes = set(inspect.signature(self.decoder.forward).parameters)
        if "past_key_values" not in self._takes:
            raise ModelError(f"{where} ({type(lm).__name__}) keeps no keys and values of its text", TELL)
        self.sizes = self._measure()
        self.positions, self.rotary = self._positions()

    @property
    def decoder(self) -> Any:
        return self.causal_lm.base_model

    @property
    def config(self) -> Any:
        return self.causal_lm.config.get_text_config()

    @property
    def num_kv_heads(self) -> int:
        return self.sizes.num_heads

    @property
    def head_size(self) -> int:
        return self.sizes.head_dim

    @property
    def num_layers(self) -> int:
        return self.sizes.num_layers

    @property
    def max_positions(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None) if self.positions == "learned" else None

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor) -> KV:
        """Per layer keys and values [B, H, T, D] as its cache holds them; the real tokens first in every row."""
        given = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": True}
        # a cache of our own: the one that a model with sliding windows makes forgets the first tokens
        out = self.decoder(past_key_values=DynamicCache(), **given)
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise ModelError("its forward pass brings none back")
        return read_cache(cache)

    def _measure(self) -> KVReport:
        """Sizes; refuses what has no cache, layers of different sizes, or sight of later tokens."""
        rows = self.decoder.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, rows, (1, PROBE), generator=torch.Generator().manual_seed(0)).to(self.device)
        whole, part = (self._tried(ids[:, :length]) for length in (PROBE, SEEN))
        found = structure(whole)
        if not found.layers_consistent:
            raise ModelError(
                f"{self.where}: its layers have keys and values of different sizes, which cannot be aligned", TELL
            )
        same = all(
            _close(a[:, :, :SEEN], b)
            for one, other in zip(whole, part, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        if not same:
            raise ModelError(
                f"{self.where} looks at tokens that come later, so it would see the answer (an encoder?)", TELL
            )
        return found

    def _tried(self, ids: Tensor) -> KV:
        try:
            return self.read(ids, torch.ones_like(ids, dtype=torch.bool))
        except ModelError as error:
            raise ModelError(f"{self.where} leaves no cache to read: {error.message}", TELL) from error
        except (
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{self.where} cannot be read through a cache: {reason}", TELL) from error

    def _positions(self) -> tuple[str, Rotary | None]:
        rows = self.decoder.get_input_embeddings().weight.shape[0]
        found = self._tried(torch.full((1, PROBE), rows // 2, device=self.device))
        if not _even(found[0][1]):
            return "learned", None
        if all(_even(keys) for keys, _ in found):
            return "none", None
        place = torch.arange(PROBE, device=self.device)[None]
        for module in _rotaries(self.causal_lm):
            if 2 * len(module.inv_freq) <= self.head_size:
                rotary = read_rotary(module, self.where)
                cos, sin = rotary.angles(place)
                if all(_even(unrotate(keys, cos, sin)) for keys, _ in found):
                    return "rotary", rotary
        raise ModelError(
            f"{self.where}: its keys carry positions in a way that cannot be undone (interleaved, or of several kinds)",
            "take a teacher whose rotary embedding is half-split, as in Llama, Qwen, Mistral, Phi or GPT-NeoX",
        )


def stretch(lm: Any, where: str, method: str, student_len: int | None) -> None:
    """Scales a model's rotary embedding so that it reads texts of the student's length; shorter ones need nothing."""
    own = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    if own is None or student_len is None or student_len <= own:
        return
    for module in _rotaries(lm):
        if getattr(module, "rope_type", "default") != "default":
            raise ConfigError(
                f"mixture.rope is {method}, but the rotary embedding of {where} is scaled already ({module.rope_type})",
                "leave mixture.rope at auto: keys are un-rotated as the model says",
            )
        frequencies = module.inv_freq
        size = 2 * len(frequencies)
        base = float(frequencies[-1].double() ** (-size / max(size - 2, 1)))  # the slowest is base^-((size - 2) / size)
        made = scaled(base, size, method, own, student_len)
        module.inv_freq = made.inv_freq.to(frequencies)
        module.attention_scaling = made.factor


def _rotaries(lm: Any) -> list[Any]:
    return [module for module in lm.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)]


def _even(entries: Tensor) -> bool:
    """entries [1, H, T, D]: the same at every place."""
    return _close(entries, entries[:, :, :1].expand_as(entries))


def _close(a: Tensor, b: Tensor) -> bool:
    """Alike in proportion to the largest number, as far as the type tells."""
    least = 2e-2 if a.dtype.itemsize < 4 else 1e-3
    return float((at_least_float32(a) - at_least_float32(b)).abs().max()) <= least * max(
        float(at_least_float32(b).abs().max()), 1e-6
    )
