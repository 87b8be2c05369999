"""A teacher of a family that is read through its cache alone (`backbone/foreign.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.align.rope import Rotary
from kava.backbone.attention import KV
from kava.backbone.foreign import Foreign
from kava.backbone.masks import positions
from kava.errors import ConfigError
from kava.teachers.base import KVShape, TeacherKV, TeacherWants
from kava.teachers.live import before_rotary, pooled_values, shape_of


class ForeignTeacher:
    """Keys and values only: queries and hidden states are not in a cache."""

    def __init__(self, model: Foreign):
        self.model = model.eval().requires_grad_(False)

    @property
    def shape(self) -> KVShape:
        return shape_of(self.model)

    @property
    def max_positions(self) -> int | None:
        return self.model.max_positions

    @property
    def rotary(self) -> Rotary | None:
        return self.model.rotary

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        self._refuse(wants)
        home = batch["question"].device
        here = {name: value.to(self.model.device) for name, value in batch.items()}
        ids, mask = (torch.cat([here[p + end] for p in ("question", "cot", "tail")], dim=1) for end in ("", "_mask"))
        order = (
            (~mask).int().argsort(dim=1, stable=True)
        )  # real tokens to the left: no family minds padding behind them
        found = self.model.read(ids.gather(1, order), mask.gather(1, order))
        place = positions(mask)
        first, last = here["question"].shape[1], here["question"].shape[1] + here["cot"].shape[1]
        own = place[:, first:last]
        keys, values = ([part.to(home) for part in parts] for parts in _at(found, own))
        asked = None
        if wants.question:
            _, told = _at(found, place[:, :first])
            asked = pooled_values(told, here["question_mask"], wants.question).to(home)
        if not wants.rotary:
            keys = before_rotary(keys, self.rotary, own.to(home))
        return TeacherKV(keys, values, question=asked)

    def _refuse(self, wants: TeacherWants) -> None:
        name = f"{self.model.where} (family {self.model.family.name})"
        if wants.importance:
            raise ConfigError(
                f"{name} does not show what its answer looks at, so it gives no importance",
                "choose rkv.method=uniform, crop, steps, random or full, explicit.attention_weighted=false and "
                "explicit.gamma_kl=0, or a teacher of the families llama, qwen2, qwen3, gpt2",
            )
        if wants.cue:
            raise ConfigError(f"{name} shows no hidden states at the cue", "set loss.alpha1_codi=0")


def _at(found: KV, column: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values [B, H, T, D] at column [B, N] -> [B, H, N, D]."""

    def pick(part: Tensor) -> Tensor:
        return part.gather(2, column[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))

    return [pick(keys) for keys, _ in found], [pick(values) for _, values in found]
