"""A teacher of a mixture of any model family: a frozen causal language model read through its KV cache.

Unknown properties are measured before the first batch: the sizes of the cache, causality, and the kind of positions.
The last uses a text that repeats one token: without positions in the hidden states all its values are equal, and keys
that differ only by a rotary embedding become equal when un-rotated.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kava.align.rope import Rotary, scaled, unrotate
from kava.backbone.attention import KV
from kava.backbone.extractor import KVReport, read_cache, structure
from kava.backbone.families import Family
from kava.backbone.kv import KVShape, Pass
from kava.backbone.model import Backbone
from kava.backbone.rotary import read_rotary
from kava.errors import ConfigError, ModelError, first_line
from kava.shapes import at_least_float32

PROBE, PREFIX = 8, 5  # tokens of a probe text, and of its beginning
TELL = "take a causal language model with attention in every layer (Llama, Qwen, GPT-2, OPT, GPT-NeoX, ...)"


class Foreign(Backbone):
    """A model of an unknown family. `positions`: learned (in the hidden states), rotary (see `rotary`), or none."""

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
    def kv_shape(self) -> KVShape:
        return KVShape(self.sizes.num_layers, self.sizes.num_heads, self.sizes.head_dim, self.config.hidden_size)

    @property
    def max_positions(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None) if self.positions == "learned" else None

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor) -> KV:
        """Cached keys and values [B, H, T, D] per layer; every row must have its real tokens first."""
        # an explicit cache: the default one of sliding-window models drops the first tokens
        out = self.decoder(input_ids=ids, attention_mask=mask.long(), use_cache=True, past_key_values=DynamicCache())
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise ModelError("its forward pass brings none back")
        return read_cache(cache)

    def run_text(self, ids: Tensor, mask: Tensor, all_layers: bool = False) -> Pass:
        """Keys and values of a text with padding at the end; a cache has no queries and no hidden states."""
        keys, values = zip(*self.read(ids, mask), strict=True)
        return Pass(mask.new_empty(0), [], list(keys), list(values))

    def _measure(self) -> KVReport:
        """The sizes of its cache; refuses models without a cache, with layers of different sizes, or not causal."""
        rows = self.decoder.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, rows, (1, PROBE), generator=torch.Generator().manual_seed(0)).to(self.device)
        whole, part = (self._read_probe(ids[:, :length]) for length in (PROBE, PREFIX))
        sizes = structure(whole)
        if not sizes.layers_consistent:
            raise ModelError(
                f"{self.where}: its layers have keys and values of different sizes, which cannot be aligned", TELL
            )
        layers = zip(whole, part, strict=True)
        if not all(_close(a[:, :, :PREFIX], b) for pair in layers for a, b in zip(*pair, strict=True)):
            raise ModelError(
                f"{self.where} looks at tokens that come later, so it would see the answer (an encoder?)", TELL
            )
        return sizes

    def _read_probe(self, ids: Tensor) -> KV:
        try:
            return self.read(ids, torch.ones_like(ids, dtype=torch.bool))
        except ModelError as error:
            raise ModelError(f"{self.where} leaves no cache to read: {error.message}", TELL) from error
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{self.where} cannot be read through a cache: {first_line(error)}", TELL) from error

    def _positions(self) -> tuple[str, Rotary | None]:
        rows = self.decoder.get_input_embeddings().weight.shape[0]
        cache = self._read_probe(torch.full((1, PROBE), rows // 2, device=self.device))
        if not _constant(cache[0][1]):
            return "learned", None
        if all(_constant(keys) for keys, _ in cache):
            return "none", None
        places = torch.arange(PROBE, device=self.device)[None]
        for module in _rotaries(self.causal_lm):
            if 2 * len(module.inv_freq) <= self.sizes.head_dim:
                rotary = read_rotary(module, self.where)
                cos, sin = rotary.angles(places)
                if all(_constant(unrotate(keys, cos, sin)) for keys, _ in cache):
                    return "rotary", rotary
        raise ModelError(
            f"{self.where}: its keys carry positions in a way that cannot be undone (interleaved, or of several kinds)",
            "take a teacher whose rotary embedding is half-split, as in Llama, Qwen, Mistral, Phi or GPT-NeoX",
        )


def stretch(lm: Any, where: str, method: str, student_len: int | None) -> None:
    """Scales a model's rotary embedding to texts of the student's length, if that exceeds its own."""
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
        rotary = scaled(base, size, method, own, student_len)
        module.inv_freq = rotary.inv_freq.to(frequencies)
        module.attention_scaling = rotary.factor


def _rotaries(lm: Any) -> list[Any]:
    return [module for module in lm.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)]


def _constant(entries: Tensor) -> bool:
    """True if entries [1, H, T, D] are the same at every token."""
    return _close(entries, entries[:, :, :1].expand_as(entries))


def _close(a: Tensor, b: Tensor) -> bool:
    """True if a and b are equal up to the rounding of their type, relative to the largest entry of b."""
    tolerance = 2e-2 if a.dtype.itemsize < 4 else 1e-3
    a, b = at_least_float32(a), at_least_float32(b)
    return float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-6)
