"""What a separate teacher shows of a batch, live or from a folder: one call, one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Batch = dict[str, Tensor]  # of data/collate.py


@dataclass(frozen=True)
class KVShape:
    """The sizes of a model's cache, and its width."""

    num_layers: int
    num_heads: int
    head_size: int
    hidden_size: int

    @property
    def layer_size(self) -> int:
        return self.num_heads * self.head_size

    def __str__(self) -> str:
        return f"{self.num_layers} layers x {self.num_heads} heads x {self.head_size}"


@dataclass(frozen=True)
class TeacherWants:
    """What the loss needs beside keys and values; what is not wanted is not computed.

    rotary: keys as a cache holds them; False: as they were before the rotary embedding (a mixture aligns them first).
    question: the values of the question, their mean or the first token's, by which a teacher is compared with prototypes.
    """

    importance: bool = False
    cue: bool = False
    rotary: bool = True
    question: Literal["", "mean", "first"] = ""


@dataclass(frozen=True)
class TeacherKV:
    """keys and values per layer [B, H, N, D] at the batch's CoT columns; no gradient anywhere.

    importance per layer [B, H, N]; cue [B, L, E] hidden states behind layers 1..L at the last cue token; `only` [B, N]
    the columns that a store has kept (None: all of them); question [B, L, H*D] values of the real tokens of the
    question, a prompt around it included: their mean, or the first one's.
    """

    keys: list[Tensor]
    values: list[Tensor]
    importance: list[Tensor] | None = None
    cue: Tensor | None = None
    only: Tensor | None = None
    question: Tensor | None = None


class Teacher(Protocol):
    """Live (`live.py`) or from a folder (`store.py`): the loss does not know which."""

    @property
    def shape(self) -> KVShape: ...

    def __call__(self, batch: Batch, wants: TeacherWants) -> TeacherKV: ...
