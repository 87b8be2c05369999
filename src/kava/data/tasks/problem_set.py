"""What a generated set is made of: problems of a number of steps, drawn with a seed, each with a text of its own."""

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from kava.data.example import stable_hash
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

P = TypeVar("P")
Pairs = tuple[tuple[str, int], ...]
SHARES = {"train": range(0, 80), "validation": range(80, 85), "test": range(85, 100)}


class Texts(NamedTuple):
    """A problem as it is read: question, chain of thought, answer."""

    question: str
    steps: tuple[str, ...]
    answer: str


class ProblemSet(ABC, Generic[P]):
    """One kind of problem. `P` is a problem in the task's own form; a setting that makes none is a DataError."""

    card: ClassVar[str]  # of data/cards
    cot_type: ClassVar[str] = "equation"

    def __init__(self, name: str, config: "GeneratorConfig"):
        self.name, self.config = name, config
        if not 1 <= config.min_steps <= config.max_steps:
            raise DataError(
                f"built-in set {name}: min_steps {config.min_steps}, max_steps {config.max_steps}",
                "needs 1 <= min_steps <= max_steps",
            )

    @property
    def lengths(self) -> range:
        """The numbers of steps that problems have."""
        return range(self.config.min_steps, self.config.max_steps + 1)

    def check_length(self, steps: int) -> None:
        """DataError where there are no problems of so many steps."""

    @abstractmethod
    def draw(self, rng: random.Random, steps: int) -> P:
        """A problem of exactly `steps` steps."""

    @abstractmethod
    def key(self, problem: P) -> str:
        """What two problems share if and only if they are the same; it decides the split."""

    @abstractmethod
    def texts(self, problem: P) -> Texts:
        """Question, steps and answer."""

    def id(self, problem: P) -> str:
        """A short name for a problem, the same in every run."""
        return f"{stable_hash(self.key(problem), 'kava-built-in'):016x}"

    def count(self, steps: int) -> int | None:
        """How many problems of a length there are, where they can be numbered."""
        return None

    def members(self, steps: int) -> dict[str, tuple[P, ...]]:
        """All problems of a length by split, in the order of their numbers; asked only where `count` is small."""
        raise NotImplementedError


def split_of(key: str) -> str:
    """The split of a problem, by a hash of its key alone: splits never overlap, whatever the seed and sizes."""
    bucket = stable_hash(key, "kava-built-in") % 100
    return next(split for split, buckets in SHARES.items() if bucket in buckets)
