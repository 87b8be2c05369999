"""A live teacher of any model family, read through its cache (`backbone/foreign.py`)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from kava.align.rope import Rotary
from kava.backbone.attention import KV
from kava.backbone.foreign import Foreign
from kava.backbone.masks import positions
from kava.errors import ConfigError
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.live import LiveTeacher, before_rotary, pooled_values


class ForeignTeacher(LiveTeacher):
    """Gives keys and values only; queries and hidden states are not in a cache."""

    model: Foreign

    @cached_property
    def rotary(self) -> Rotary | None:
        return self.model.rotary

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        self._refuse(wants)
        device = batch["question"].device
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        ids, mask = (torch.cat([batch[p + end] for p in ("question", "cot", "tail")], dim=1) for end in ("", "_mask"))
        order = (~mask).int().argsort(dim=1, stable=True)  # real tokens first: every family ignores right padding
        cache = self.model.read(ids.gather(1, order), mask.gather(1, order))
        position = positions(mask)
        first, last = batch["question"].shape[1], batch["question"].shape[1] + batch["cot"].shape[1]
        cot = position[:, first:last]
        keys, values = ([part.to(device) for part in parts] for parts in _at(cache, cot))
        question = None
        if wants.question:
            _, question_values = _at(cache, position[:, :first])
            question = pooled_values(question_values, batch["question_mask"], wants.question).to(device)
        if not wants.rotary:
            keys = before_rotary(keys, self.rotary, cot.to(device))
        return TeacherKV(keys, values, question=question)

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


def _at(cache: KV, column: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values [B, H, T, D] at column [B, N] -> [B, H, N, D]."""

    def pick(part: Tensor) -> Tensor:
        return part.gather(2, column[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))

    return [pick(keys) for keys, _ in cache], [pick(values) for _, values in cache]
