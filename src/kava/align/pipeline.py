"""One teacher's keys and values at the student's tokens, layers, head size and heads: the one order there is.

    keys before the rotary embedding -> tokens -> layers -> head size -> heads -> scale and shift -> (fused) -> student's rotary

Keys are un-rotated first: an average over tokens of keys that carry different rotations would be no key at any position.
Tokens and layers are both averages, so they are taken in the order that costs less.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from kava.align.aggregate import CacheSizes
from kava.align.heads import HeadDimAdapter, head_similarity, match_heads
from kava.align.layers import Entry, mix
from kava.align.length import apply_soft_alignment
from kava.align.tokens import matched, normalised, spread
from kava.errors import ModelError
from kava.shapes import at_least_float32

PARTS = ("K", "V")


class Aligner(nn.Module):
    """For every student layer one adapter for keys and one for values.

    layer_map  for each student layer its teacher layers with weights
    trained    False: the start (averages, or the identity) stays as it is
    """

    def __init__(
        self, teacher: CacheSizes, student: CacheSizes, layer_map: list[Entry], heads: str = "group_mean", trained: bool = True
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
        made = {part: nn.ModuleList(HeadDimAdapter(*sizes, heads) for _ in layer_map) for part in PARTS}
        self.adapters = nn.ModuleDict(made).requires_grad_(trained)

    def adapter(self, part: str, layer: int) -> HeadDimAdapter:
        """The adapter of keys (K) or values (V) for a student layer."""
        return self.adapters[part][layer]  # type: ignore[index,return-value]

    def rescale(self, part: str, layer: int, gain: Tensor, shift: Tensor) -> None:
        """From now on that adapter gives gain * (what it gave) + shift; both [H_s, D_s]."""
        self.adapter(part, layer).rescale(gain, shift)

    def freeze_unused(self, layers: Collection[int], parts: Collection[str] = PARTS) -> None:
        """Adapters of other student layers or parts would wait for a gradient that never comes."""
        for part in PARTS:
            for layer in range(len(self.layer_map)):
                if layer not in layers or part not in parts:
                    self.adapter(part, layer).requires_grad_(False)

    def forward(self, keys: list[Tensor], values: list[Tensor], iou: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """keys (before rotary) and values: per teacher layer [B, H_t, N_t, D_t]; iou [B, N_s, N_t] of align/tokens.py.

        Both come back per student layer [B, H_s, N_s, D_s], keys still without any rotation. What comes back for a
        token without a partner means nothing; `tokens.matched` tells which these are.
        """
        moved = self.along(keys, values, iou)
        adapted = [
            [self.adapter(part, layer)(entries) for layer, entries in enumerate(layers)]
            for part, layers in zip(PARTS, moved, strict=True)
        ]
        return adapted[0], adapted[1]

    def along(self, keys: list[Tensor], values: list[Tensor], iou: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The same at the student's tokens and layers only: [B, H_t, N_s, D_t] per student layer."""
        share = normalised(iou)
        return self._moved(keys, share), self._moved(values, share)

    def importance(self, looked: list[Tensor], iou: Tensor) -> list[Tensor]:
        """Per student layer [B, H_s, N_s], of [B, H_t, N_t] per teacher layer: a token's mass is shared out, not averaged.

        Nothing here is trained: heads are mixed as the adapters of keys began.
        """
        return [
            torch.einsum("st,btn->bsn", self.adapter("K", layer).fixed_shares.to(mass), mass)
            for layer, mass in enumerate(self._moved(looked, spread(iou)))
        ]

    def alike(self, student: list[Tensor], teacher: list[Tensor], iou: Tensor, mask: Tensor) -> Tensor:
        """[L_s, H_s, H_t] how alike heads attend, summed over samples: for `match`. Of several batches, add them up.

        student per layer [B, H_s, N_s], teacher per layer [B, H_t, N_t], both `importance`; mask [B, N_s] real tokens.
        """
        both = zip(student, self._moved(teacher, spread(iou)), strict=True)
        return torch.stack([head_similarity(mine, theirs, mask & matched(iou)) for mine, theirs in both])

    def match(self, alike: Tensor) -> None:
        """From now on (heads "matched") every layer's heads are mixed by their likeness [L_s, H_s, H_t]."""
        for layer, similarity in enumerate(alike):
            for part in PARTS:
                self.adapter(part, layer).set_shares(match_heads(similarity))

    def question(self, values: Tensor) -> Tensor:
        """[B, L_s, H_s*D_s] of [B, L_t, H_t*D_t] values that stand for a whole question: layers, head size, heads."""
        self._check(values.shape[1])
        layers = list(values.unflatten(2, (self.teacher.num_heads, 1, self.teacher.head_size)).unbind(1))
        adapted = [self.adapter("V", layer)(mix(layers, entry)) for layer, entry in enumerate(self.layer_map)]
        return torch.stack([entries.flatten(1) for entries in adapted], dim=1)

    def _moved(self, layers: list[Tensor], weights: Tensor) -> list[Tensor]:
        """Teacher tokens to student tokens, teacher layers to student layers: what there is less of is made first."""
        self._check(len(layers))

        better = {layer: at_least_float32(layers[layer]) for layer in self.used}
        with torch.autocast(weights.device.type, enabled=False):
            if len(self.used) < len(self.layer_map):
                there = {layer: apply_soft_alignment(better[layer], weights) for layer in self.used}
                return [mix(there, entry) for entry in self.layer_map]
            return [apply_soft_alignment(mix(better, entry), weights) for entry in self.layer_map]

    def _check(self, count: int) -> None:
        if count != self.teacher.num_layers:
            raise ModelError(f"an aligner for {self.teacher.num_layers} teacher layers was given {count}")
