"""What passes, sources and terms hand each other."""

from dataclasses import dataclass, field

from torch import Tensor

from kava.backbone.teacher_forced import TextPass
from kava.losses import Term
from kava.teachers.base import Batch

__all__ = ["Batch", "Figure", "PassOutputs", "Result", "Step", "StudentView", "Targets", "TeacherView", "Views"]


@dataclass(frozen=True)
class Step:
    """What the trainer knows of the update that a micro-batch belongs to.

    update: finished updates; progress: their share of the run, 0 to 1; log: health and per-layer figures are wanted.
    """

    update: int = 0
    epoch: int = 0
    progress: float = 0.0
    log: bool = True


@dataclass(frozen=True)
class PassOutputs:
    """Which parts the loss's weights call for; the passes compute no others."""

    teacher: bool
    student: bool
    kv: bool
    codi: bool


@dataclass(frozen=True)
class Targets:
    """Hidden states [n, E] and the tokens [n] they have to predict: only positions that have a target."""

    hidden: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class TeacherView:
    """The student's own teacher mode: queries [B, H*R, A, D] of the answer part, keys and values [B, H, N, D] of the chain
    of thought, per layer; hidden states [B, L, E] after each layer at the last cue token."""

    targets: Targets
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    cue: Tensor | None = None


@dataclass(frozen=True)
class StudentView:
    """keys and values [B, H, *, D] per layer, of the final latents or of the CoT columns; cue [B, L, E].

    latents [B, M, E]: input embeddings of the latents, and `states` their hidden states [B, M, E] in the last pass.
    text: the whole pass, where the student reads the chain of thought.
    """

    targets: Targets
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    cue: Tensor | None = None
    latents: Tensor | None = None
    states: Tensor | None = None
    text: TextPass | None = None


Views = tuple[StudentView | None, TeacherView | None]


@dataclass(frozen=True)
class Figure:
    """A figure for the log, (total / count) ** power; it adds up over the pieces of a batch."""

    total: Tensor
    count: Tensor | float
    power: float = 1.0

    def __add__(self, other: "Figure") -> "Figure":
        return Figure(self.total + other.total, self.count + other.count, self.power)

    def __float__(self) -> float:
        count = float(self.count)
        return (float(self.total) / count) ** self.power if count else 0.0


@dataclass(frozen=True)
class Result:
    """The terms of one micro-batch, and figures for the log that tell whether a student is healthy."""

    terms: list[Term]
    health: dict[str, Figure]
