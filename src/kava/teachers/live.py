"""A teacher that reads each batch when it is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.backbone.model import Backbone
from kava.backbone.reading import cue_states, read_text
from kava.compress import importance
from kava.teachers.base import KVShape, TeacherKV, TeacherWants


class LiveTeacher:
    """A frozen model. It is no part of the objective's parameters: nothing saves, trains or moves it."""

    def __init__(self, model: Backbone):
        self.model = model.eval().requires_grad_(False)

    @property
    def shape(self) -> KVShape:
        return shape_of(self.model)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        home = batch["question"].device
        here = {name: value.to(self.model.device) for name, value in batch.items()}
        text = read_text(self.model, here, all_layers=wants.cue)
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
        return TeacherKV(keys, values, looked, cue)


def shape_of(model: Backbone) -> KVShape:
    return KVShape(model.num_layers, model.num_kv_heads, model.head_size, model.config.hidden_size)
