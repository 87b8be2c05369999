"""What the losses need to see of teacher and student, however their passes were run."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kava.losses import Term

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Targets:
    """Hidden states [n, E] and the tokens [n] they have to predict: only positions that have a target."""

    hidden: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Teacher:
    """queries [B, H*R, A, D] of the answer part, keys and values [B, H, N, D] of the chain of thought, per layer."""

    targets: Targets
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    cue: Tensor | None = None  # [B, L, E]


@dataclass(frozen=True)
class StudentView:
    """keys and values [B, H, M, D] of the final latents, per layer; `latents` their input embeddings [B, M, E]."""

    targets: Targets
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    cue: Tensor | None = None
    latents: Tensor | None = None
    states: Tensor | None = None  # hidden states [B, M, E] of that last pass


@dataclass(frozen=True)
class Wants:
    """Which parts the loss's weights call for; what is not wanted is not computed."""

    teacher: bool
    student: bool
    kv: bool
    codi: bool


@dataclass(frozen=True)
class Result:
    """The terms of one micro-batch, and numbers that tell whether a student is in good health."""

    terms: list[Term]
    health: dict[str, Tensor]
