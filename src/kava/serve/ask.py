"""A question on its way through the engine, and what comes back of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from kava.config import LatentConfig
from kava.infer.generate import Generation
from kava.infer.sampling import Sampling
from kava.infer.student import Answer
from kava.serve.growing_text import GrowingText


@dataclass(frozen=True)
class Update:
    """What is new of an answer: more of its text, or (once) the whole answer and why it ended, or an error."""

    ask: "Ask"
    text: str = ""
    tokens: int = 0
    """Chosen so far, eos among them."""
    answer: Answer | None = None
    finish_reason: str | None = None
    error: str | None = None
    """The message where there is no answer: the device has no memory for it."""

    @property
    def final(self) -> bool:
        return self.answer is not None or self.error is not None


@dataclass(eq=False)
class Ask:
    """One answer to one question: how it is to be made (set before it is submitted), and how far it is (the engine's).

    number   which sample of the question this is, for seeded draws
    stop     texts before which the answer ends
    zeroed   latents that are replaced by zeros once they are thought
    receive  called with each `Update`; without `stream` only with the final one
    """

    ids: tuple[int, ...]
    mode: str
    latent: LatentConfig
    limit: int
    sampling: Sampling
    receive: Callable[[Update], object]
    number: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False
    zeroed: tuple[int, ...] = ()
    cancelled: bool = False
    generation: Generation = field(default_factory=Generation)
    rounds: int = 0
    draws: Tensor | None = None
    text: GrowingText | None = None

    @property
    def batch_key(self) -> tuple[str, LatentConfig]:
        """Questions with the same one are read and thought about in the same passes."""
        return self.mode, self.latent

    @property
    def chosen(self) -> int:
        """Tokens chosen so far, eos among them."""
        return self.generation.executed - self.rounds

    def next_draw(self) -> float:
        """The uniform number that chooses the next token; 0 where it is the likeliest."""
        return 0.0 if self.draws is None else float(self.draws[self.chosen])

    def add(self, token: int, eos: int) -> None:
        """Counts and keeps a new token, by the method's rule (see `Generation`)."""
        made = self.generation
        made.forward_passes, made.executed = made.forward_passes + 1, made.executed + 1
        made.truncated = token != eos
        if token != eos:
            made.tokens.append(token)
