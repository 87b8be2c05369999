"""A teacher that reads each batch when it is needed."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from kava.align.rope import Rotary, unrotate
from kava.backbone.masks import positions
from kava.backbone.model import Backbone
from kava.backbone.rotary import rotary_of
from kava.backbone.teacher_forced import cue_states, teacher_forced_pass
from kava.compress import importance
from kava.shapes import at_least_float32
from kava.teachers.base import KVShape, TeacherKV, TeacherWants


class LiveTeacher:
    """A frozen model. It is no part of the objective's parameters: nothing saves, trains or moves it."""

    def __init__(self, model: Backbone):
        self.model = model.eval().requires_grad_(False)

    @property
    def shape(self) -> KVShape:
        return shape_of(self.model)

    @property
    def max_positions(self) -> int | None:
        """The longest text that it can read; None: no hard end."""
        return self.model.max_positions

    @cached_property
    def rotary(self) -> Rotary | None:
        """How its keys are rotated; None: its positions are not in the keys but in the hidden states."""
        return rotary_of(self.model)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        home = batch["question"].device
        here = {name: value.to(self.model.device) for name, value in batch.items()}
        text = teacher_forced_pass(self.model, here, all_layers=wants.cue)
        keys = [key[:, :, text.cot].to(home) for key in text.out.keys]
        values = [value[:, :, text.cot].to(home) for value in text.out.values]
        looked = None
        if wants.importance:
            queries = [query[:, :, text.tail].to(home) for query in text.out.queries]
            looked = [
                importance(query, key, batch["tail_answer"], batch["cot_mask"], self.model.scale)
                for query, key in zip(queries, keys, strict=True)
            ]
        cue = cue_states(text.out, text.tail.start + here["cue_last"]).to(home) if wants.cue else None
        if not wants.rotary:
            keys = before_rotary(keys, self.rotary, positions(text.mask)[:, text.cot].to(home))
        asked = None
        if wants.question:
            asked = pooled_values(
                [value[:, :, text.question] for value in text.out.values], here["question_mask"], wants.question
            )
        return TeacherKV(keys, values, looked, cue, question=None if asked is None else asked.to(home))


def before_rotary(keys: list[Tensor], rotary: Rotary | None, place: Tensor) -> list[Tensor]:
    """Keys [B, H, N, D] of tokens at `place` [B, N] as they were before the rotary embedding (None: as they are)."""
    if rotary is None:
        return keys
    cos, sin = rotary.angles(place)
    return [unrotate(key, cos, sin) for key in keys]


def pooled_values(values: list[Tensor], mask: Tensor, how: str) -> Tensor:
    """[B, L, H*D] of each layer's values [B, H, Q, D] at the columns of mask [B, Q], in the values' type: mean or first."""
    if how == "first":
        first = mask.int().argmax(1)[:, None, None, None]
        each = [value.gather(2, first.expand(-1, value.shape[1], -1, value.shape[3])).flatten(1) for value in values]
        return torch.stack(each, dim=1)
    real = mask[:, None, :, None]
    count = mask.sum(1).clamp(min=1)[:, None, None]
    sums = [at_least_float32(value).masked_fill(~real, 0).sum(2) / count for value in values]
    return torch.stack([one.flatten(1) for one in sums], dim=1).to(values[0].dtype)


def shape_of(model: Backbone) -> KVShape:
    return KVShape(model.num_layers, model.num_kv_heads, model.head_size, model.config.hidden_size)
