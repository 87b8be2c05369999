"""Aligns one teacher's keys and values with the student's tokens, layers, head size and heads, in this order:

    keys before the rotary embedding -> tokens -> layers -> head size -> heads -> scale and shift -> (fused) -> student's rotary

Keys are un-rotated first, because an average of keys with different rotations is not a key of any position.
The averages over tokens and over layers commute; the cheaper order is used.
"""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from kava.align.aggregate import CacheSizes
from kava.align.heads import HeadDimAdapter, head_similarity, match_heads
from kava.align.layers import Entry, mix
from kava.align.length import apply_soft_alignment
from kava.align.tokens import matched, normalised, spread
from kava.errors import ModelError
from kava.shapes import at_least_float32

PARTS = ("k", "v")  # as saved weights name them, part.upper()


class Aligner(nn.Module):
    """One adapter for keys and one for values per student layer.

    layer_map  teacher layers and weights of each student layer
    trained    False: the adapters stay as initialised (averages, or the identity)
    """

    def __init__(
        self,
        teacher: CacheSizes,
        student: CacheSizes,
        layer_map: list[Entry],
        heads: str = "group_mean",
        trained: bool = True,
    ):
        super().__init__()
        self.teacher, self.student, self.layer_map = teacher, student, layer_map
        self.used = sorted({layer for entry in layer_map for layer, _ in entry})
        if len(layer_map) != student.num_layers or not 0 <= self.used[0] <= self.used[-1] < teacher.num_layers:
            raise ModelError(
                f"a layer map of {len(layer_map)} student layers, with teacher layers {self.used[:1]} to {self.used[-1:]}, "
                f"was given for {student.num_layers} and {teacher.num_layers} layers"
            )
        sizes = (teacher.head_size, student.head_size, teacher.num_heads, student.num_heads)
        adapters = {part.upper(): nn.ModuleList(HeadDimAdapter(*sizes, heads) for _ in layer_map) for part in PARTS}
        self.adapters = nn.ModuleDict(adapters).requires_grad_(trained)

    def adapter(self, part: str, layer: int) -> HeadDimAdapter:
        """The adapter of keys ("k") or values ("v") of a student layer."""
        return self.adapters[part.upper()][layer]  # type: ignore[index,return-value]

    def freeze_unused(self, layers: Collection[int], parts: Collection[str] = PARTS) -> None:
        """Freezes the adapters of other student layers or parts, which never get a gradient."""
        used = {part.upper() for part in parts}
        for name, adapters in self.adapters.items():
            for layer, adapter in enumerate(cast(nn.ModuleList, adapters)):
                if layer not in layers or name not in used:
                    adapter.requires_grad_(False)

    def forward(self, keys: list[Tensor], values: list[Tensor], iou: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """keys (before rotary) and values: per teacher layer [B, H_t, N_t, D_t]; iou [B, N_s, N_t] of align/tokens.py.

        Returns both per student layer [B, H_s, N_s, D_s], keys still without rotation. Entries of unmatched tokens
        (`tokens.matched`) have no meaning.
        """
        adapted = [
            [self.adapter(part, layer)(entries) for layer, entries in enumerate(layers)]
            for part, layers in zip(PARTS, self.along(keys, values, iou), strict=True)
        ]
        return adapted[0], adapted[1]

    def along(self, keys: list[Tensor], values: list[Tensor], iou: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values at the student's tokens and layers, heads unchanged: [B, H_t, N_s, D_t] per student layer."""
        share = normalised(iou)
        return self._moved(keys, share), self._moved(values, share)

    def importance(self, importance: list[Tensor], iou: Tensor) -> list[Tensor]:
        """Importance per student layer [B, H_s, N_s] from [B, H_t, N_t] per teacher layer.

        A token's mass is distributed over its partners, not averaged. No trained weight has a part: heads are mixed as
        the key adapters were initialised.
        """
        return [
            torch.einsum("st,btn->bsn", self.adapter("k", layer).fixed_shares.to(mass), mass)
            for layer, mass in enumerate(self._moved(importance, spread(iou)))
        ]

    def alike(self, student: list[Tensor], teacher: list[Tensor], iou: Tensor, mask: Tensor) -> Tensor:
        """[L_s, H_s, H_t] similarity of the heads' attention, summed over samples, for `match`; batches may be added.

        student per layer [B, H_s, N_s], teacher per layer [B, H_t, N_t], each an importance; mask [B, N_s] real tokens.
        """
        pairs = zip(student, self._moved(teacher, spread(iou)), strict=True)
        return torch.stack([head_similarity(*pair, mask & matched(iou)) for pair in pairs])

    def match(self, alike: Tensor) -> None:
        """Sets the head mixing of every layer (heads "matched") from similarities [L_s, H_s, H_t]."""
        for layer, similarity in enumerate(alike):
            for part in PARTS:
                self.adapter(part, layer).set_shares(match_heads(similarity))

    def question(self, values: Tensor) -> Tensor:
        """[B, L_s, H_s*D_s] from [B, L_t, H_t*D_t] pooled values of a question: layers, head size and heads aligned."""
        self._check(values.shape[1])
        layers = list(values.unflatten(2, (self.teacher.num_heads, 1, self.teacher.head_size)).unbind(1))
        adapted = [self.adapter("v", layer)(mix(layers, entry)) for layer, entry in enumerate(self.layer_map)]
        return torch.stack([entries.flatten(1) for entries in adapted], dim=1)

    def _moved(self, layers: list[Tensor], weights: Tensor) -> list[Tensor]:
        """Teacher tokens to student tokens, teacher layers to student layers; the step with fewer results comes first."""
        self._check(len(layers))
        used = {layer: at_least_float32(layers[layer]) for layer in self.used}
        with torch.autocast(weights.device.type, enabled=False):
            if len(self.used) < len(self.layer_map):
                aligned = {layer: apply_soft_alignment(used[layer], weights) for layer in self.used}
                return [mix(aligned, entry) for entry in self.layer_map]
            return [apply_soft_alignment(mix(used, entry), weights) for entry in self.layer_map]

    def _check(self, count: int) -> None:
        if count != self.teacher.num_layers:
            raise ModelError(f"an aligner for {self.teacher.num_layers} teacher layers was given {count}")
