"""What may stand beside the KV term of the explicit line: hidden states at the cue, CKA, attention maps. Sums all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kava.align import flatten_heads, mix
from kava.align.layers import Entry
from kava.backbone.teacher_forced import TextPass, cue_states
from kava.compress import importance
from kava.config import LossConfig, ProjectorConfig
from kava.errors import ConfigError
from kava.losses import codi_loss
from kava.losses.cka import cka
from kava.objective.records import Batch
from kava.teachers.base import KVShape, TeacherKV

Layers = list[Tensor]


@dataclass(frozen=True)
class Seen:
    """What the student is compared with: a teacher's entries, and the columns [B, N] of the CoT that count."""

    kv: TeacherKV
    mask: Tensor


def codi_term(
    batch: Batch, text: TextPass, seen: TeacherKV, layers: list[Entry], project: nn.Module | None, loss: LossConfig
) -> Tensor:
    """Hidden states at the last cue token, layer by layer, in the teacher's width."""
    assert seen.cue is not None
    mine = cue_states(text.out, text.tail.start + batch["cue_last"])
    if project is not None:
        mine = project(mine.to(next(project.parameters()).dtype))
    theirs = list(seen.cue.unbind(1))
    target = torch.stack([mix(theirs, entry) for entry in layers], dim=1)
    return codi_loss(mine, target, loss.codi_loss_type, loss.layerwise_std, loss.std_scope)


def make_codi_map(settings: ProjectorConfig, student: KVShape, teacher: KVShape) -> nn.Module | None:
    """From the student's width to the teacher's, where they differ."""
    if student.hidden_size == teacher.hidden_size:
        return None
    if settings.direction == "none" or not settings.trainable:
        raise ConfigError(
            f"loss.alpha1_codi compares hidden states, but the student is {student.hidden_size} wide and the teacher "
            f"{teacher.hidden_size}, and no map between them is trained",
            "set loss.alpha1_codi=0, or a projector.direction",
        )
    return nn.Linear(student.hidden_size, teacher.hidden_size)


def cka_term(keys: Layers, seen: Seen, layers: list[Entry], asked: list[int]) -> Tensor:
    """sum_b sum_l 1 - CKA of keys, over samples with more than one compared column."""
    total = keys[0].new_zeros((), dtype=torch.float32)
    for layer in asked:
        mine, theirs = flatten_heads(keys[layer]), flatten_heads(mix(seen.kv.keys, layers[layer]))
        total = total + (1 - cka(mine, theirs, seen.mask))[seen.mask.sum(1) > 1].sum()
    return total


def cka_layers(asked: str, count: int) -> list[int]:
    """middle, last, or numbers from 0."""
    if asked in ("middle", "last"):
        return [count // 2 if asked == "middle" else count - 1]
    words = [word.strip() for word in asked.split(",")]
    if not all(word.isdigit() and int(word) < count for word in words):
        raise ConfigError(
            f"explicit.cka_layers is {asked!r}; the student has layers 0 to {count - 1}",
            "write middle, last, or numbers with commas between them",
        )
    return [int(word) for word in words]


def attention_term(batch: Batch, text: TextPass, keys: Layers, seen: Seen, layers: list[Entry], scale: float) -> Tensor:
    """sum KL(teacher || student) of what the answer looks at among the compared columns, heads averaged."""
    assert seen.kv.importance is not None
    total = keys[0].new_zeros((), dtype=torch.float32)
    for layer, entry in enumerate(layers):
        query = text.out.queries[layer][:, :, text.tail]
        looked = importance(query, keys[layer], batch["tail_answer"], batch["cot_mask"], scale)
        mine, theirs = (_shares(part, seen.mask).mean(1) for part in (looked, mix(seen.kv.importance, entry)))
        real = seen.mask & (theirs > 0)
        ratio = theirs.clamp(min=1e-12).log() - mine.clamp(min=1e-12).log()
        total = total + (theirs * ratio).masked_fill(~real, 0.0).sum()
    return total


def _shares(looked: Tensor, mask: Tensor) -> Tensor:
    """[B, H, N] what is looked at, with a sum of 1 over the columns of mask [B, N]: some of it may be elsewhere."""
    looked = looked.masked_fill(~mask[:, None], 0.0)
    total = looked.sum(2, keepdim=True)
    return looked / torch.where(total > 0, total, 1.0)
