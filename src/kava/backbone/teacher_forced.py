"""One teacher-forced pass over question, chain of thought, cue and answer, by teachers and explicit students."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbone.kv import Pass
from kava.backbone.masks import pick
from kava.backbone.model import Backbone


@dataclass(frozen=True)
class TextPass:
    """The pass over [question | cot | tail], its ids and mask [B, T], and the columns of the parts."""

    out: Pass
    ids: Tensor
    mask: Tensor
    question: slice
    cot: slice
    tail: slice


def teacher_forced_pass(model: Backbone, batch: dict[str, Tensor], all_layers: bool = False) -> TextPass:
    """Teacher forcing over a batch of data/collate.py; each part may be padded on either side."""
    parts = ("question", "cot", "tail")
    ids = torch.cat([batch[name] for name in parts], dim=1)
    mask = torch.cat([batch[f"{name}_mask"] for name in parts], dim=1)
    return TextPass(model.run_text(ids, mask, all_layers), ids, mask, *text_columns(batch))


def text_columns(batch: dict[str, Tensor]) -> tuple[slice, slice, slice]:
    """The columns of question, chain of thought and tail where they follow each other."""
    question, cot, tail = (batch[name].shape[1] for name in ("question", "cot", "tail"))
    return slice(0, question), slice(question, question + cot), slice(question + cot, question + cot + tail)


def cue_states(out: Pass, column: Tensor) -> Tensor:
    """[B, L, E] hidden states after each layer at one column per sample."""
    assert out.layers is not None
    return torch.stack([pick(layer, column) for layer in out.layers], dim=1)
