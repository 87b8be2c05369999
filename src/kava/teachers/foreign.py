"""A live teacher of any model family, read through its cache (`backbone/foreign.py`)."""

from __future__ import annotations

from torch import Tensor

from kava.backbone.foreign import Foreign
from kava.errors import ConfigError
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.live import LiveTeacher


class ForeignTeacher(LiveTeacher):
    """Gives keys and values only; queries and hidden states are not in a cache."""

    model: Foreign

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        name = f"{self.model.where} (family {self.model.family.name})"
        if wants.importance:
            raise ConfigError(
                f"{name} does not show what its answer looks at, so it gives no importance",
                "choose rkv.method=uniform, crop, steps, random or full, explicit.attention_weighted=false and "
                "explicit.gamma_kl=0, or a teacher of the families llama, qwen2, qwen3, gpt2",
            )
        if wants.cue:
            raise ConfigError(f"{name} shows no hidden states at the cue", "set loss.alpha1_codi=0")
        return super().__call__(batch, wants)
