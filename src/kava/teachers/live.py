"""A live teacher: a frozen model that runs on each batch."""

import torch
from torch import Tensor

from kava.align.rope import Rotary, unrotate
from kava.backbone.foreign import Foreign
from kava.backbone.model import Backbone
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.compress import importance
from kava.errors import ConfigError
from kava.shapes import at_least_float32
from kava.teachers.base import TeacherKV, TeacherWants


class LiveTeacher:
    """A frozen model, not part of the objective's parameters: it is neither saved nor trained nor moved."""

    def __init__(self, model: Backbone):
        self.model = model.eval().requires_grad_(False)
        self.shape, self.max_positions = model.kv_shape, model.max_positions

    @property
    def rotary(self) -> Rotary | None:
        return self.model.rotary

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        device = batch["question"].device
        on_model = {name: value.to(self.model.device) for name, value in batch.items()}
        text = teacher_forced_pass(self.model, on_model, all_layers=wants.cue)
        keys, values = ([part.to(device) for part in parts] for parts in (text.keys("cot"), text.values("cot")))
        per_layer = None
        if wants.importance:
            queries = [query.to(device) for query in text.queries("tail")]
            per_layer = [
                importance(query, key, batch["tail_answer"], batch["cot_mask"], self.model.scale, self.model.cap)
                for query, key in zip(queries, keys, strict=True)
            ]
        cue = text.cue(on_model).to(device) if wants.cue else None
        if not wants.rotary:
            keys = before_rotary(keys, self.rotary, text.rows.columns["cot"].to(device))
        question = None
        if wants.question:
            question = pooled_values(text.values("question"), on_model["question_mask"], wants.question).to(device)
        return TeacherKV(keys, values, per_layer, cue, question=question)


class ForeignTeacher(LiveTeacher):
    """A teacher of any family, read through its cache: keys and values only, no queries and no hidden states."""

    model: Foreign

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        name = f"{self.model.where} (family {self.model.family.name})"
        if wants.importance:
            raise ConfigError(
                f"{name} does not show what its answer looks at, so it gives no importance",
                "choose rkv.method=uniform, crop, steps, random or full, explicit.attention_weighted=false and "
                "explicit.gamma_kl=0, or a teacher of a family that passes `kava model check`",
            )
        if wants.cue:
            raise ConfigError(f"{name} shows no hidden states at the cue", "set loss.alpha1_codi=0")
        return super().__call__(batch, wants)


def before_rotary(keys: list[Tensor], rotary: Rotary | None, position: Tensor) -> list[Tensor]:
    """Keys [B, H, N, D] of tokens at `position` [B, N] without their rotation (None: unchanged)."""
    if rotary is None:
        return keys
    cos, sin = rotary.angles(position)
    return [unrotate(key, cos, sin) for key in keys]


def pooled_values(values: list[Tensor], mask: Tensor, how: str) -> Tensor:
    """[B, L, H*D]: the mean (or first) of each layer's values [B, H, Q, D] over mask [B, Q], in the values' dtype."""
    if how == "first":
        first = mask.int().argmax(1)[:, None, None, None]
        each = [value.gather(2, first.expand(-1, value.shape[1], -1, value.shape[3])).flatten(1) for value in values]
        return torch.stack(each, dim=1)
    real = mask[:, None, :, None]
    count = mask.sum(1).clamp(min=1)[:, None, None]
    sums = [at_least_float32(value).masked_fill(~real, 0).sum(2) / count for value in values]
    return torch.stack([total.flatten(1) for total in sums], dim=1).to(values[0].dtype)
