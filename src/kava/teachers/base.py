"""The interface of separate teachers, live or stored: one call per batch returns one record."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from kava.backbone.kv import KVShape

Batch = dict[str, Tensor]  # of data/collate.py


@dataclass(frozen=True)
class TeacherWants:
    """What the loss needs beside keys and values; nothing else is computed.

    rotary: keys as in a cache; False: before the rotary embedding (a mixture aligns them first).
    question: pooled values of the question, mean or first token, to compare a teacher with its prototypes.
    """

    importance: bool = False
    cue: bool = False
    rotary: bool = True
    question: Literal["", "mean", "first"] = ""


@dataclass(frozen=True)
class TeacherKV:
    """keys and values per layer [B, H, N, D] at the batch's CoT columns; gradient only through a
    mixture's adapters.

    importance per layer [B, H, N]; cue [B, L, E] hidden states after layers 1..L at the last cue token; `only` [B, N]
    the columns that a store has kept (None: all); question [B, L, H*D] values of the real tokens of the question, with
    its prompt: their mean, or those of the first token.
    """

    keys: list[Tensor]
    values: list[Tensor]
    importance: list[Tensor] | None = None
    cue: Tensor | None = None
    only: Tensor | None = None
    question: Tensor | None = None


class Teacher(Protocol):
    """A teacher, live (`live.py`) or stored (`store.py`); the loss treats both alike."""

    @property
    def shape(self) -> KVShape: ...

    def __call__(self, batch: Batch, wants: TeacherWants) -> TeacherKV: ...
