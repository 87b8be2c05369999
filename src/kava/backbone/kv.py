"""What one forward pass of a decoder returns: queries, keys, values and hidden states; and the sizes of a cache."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kava.align import rope
from kava.backbone.attention import KV
from kava.backbone.families import Family
from kava.backbone.joined import at


@dataclass(frozen=True)
class KVShape:
    """The sizes of a model's cache, and its hidden size."""

    num_layers: int
    num_heads: int
    head_size: int
    hidden_size: int

    @property
    def layer_size(self) -> int:
        return self.num_heads * self.head_size

    def __str__(self) -> str:
        return f"{self.num_layers} layers x {self.num_heads} heads x {self.head_size}"


@dataclass(frozen=True)
class Pass:
    """hidden [B, T, E] after the final norm; per layer queries [B, H*R, T, D], keys and values [B, H, T, D] of this
    pass's own tokens; if requested, `layers`, the hidden states after layers 1..L (the last one normed), and `joined`, the
    keys and values of the prefix and of this pass in one."""

    hidden: Tensor
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    layers: tuple[Tensor, ...] | None = None
    joined: KV | None = None

    def part(self, columns: slice) -> "Pass":
        """The same of a range of this pass's tokens."""
        queries, keys, values = (
            [part[:, :, columns] for part in all_] for all_ in (self.queries, self.keys, self.values)
        )
        layers = None if self.layers is None else tuple(layer[:, columns] for layer in self.layers)
        return Pass(self.hidden[:, columns], queries, keys, values, layers)

    def kv(self, columns: slice) -> KV:
        """Keys and values of a range of this pass's tokens, as a prefix for a later pass."""
        return [(k[:, :, columns], v[:, :, columns]) for k, v in zip(self.keys, self.values, strict=True)]


@cache
def keywords_arrive(family: Family) -> bool:
    """False for GPT-2 before transformers 5, which does not pass keywords on to attention."""
    import transformers

    return family.name != "gpt2" or int(transformers.__version__.split(".")[0]) >= 5


def join(*parts: KV) -> KV:
    """Concatenates prefixes along the tokens."""
    return [
        (torch.cat([k for k, _ in layer], dim=2), torch.cat([v for _, v in layer], dim=2))
        for layer in zip(*parts, strict=True)
    ]


def right_aligned(prefix: KV, known: Tensor, width: int) -> tuple[KV, Tensor]:
    """The prefix and its mask [B, P] in `width` columns: the real ones at the end in their order, padding before them."""
    behind = known.flip(1).cumsum(1).flip(1)  # real columns from this one on
    place = torch.where(known, width - behind, width)  # the last column takes what is padding
    source = torch.zeros(len(known), width + 1, dtype=torch.long, device=known.device)
    columns = torch.arange(known.shape[1], device=known.device).expand_as(known)
    source = source.scatter(1, place, columns)[:, :width]
    aligned = torch.arange(width, device=known.device) >= width - known.sum(1)[:, None]
    return [(at(k, source), at(v, source)) for k, v in prefix], aligned


def unrotate(keys: Tensor, decoder: Any, positions: Tensor) -> Tensor:
    """Keys [B, H, T, D] without the decoder's rotation at `positions` [B, T]."""
    cos, sin = (part.unsqueeze(1) for part in decoder.rotary_emb(keys, positions))
    return rope.unrotate(keys, cos, sin)
