"""Built-in data: seeded multi-step arithmetic modulo m, of mixed length; needs no file and no network.

    chains        "3+4*2-1?"                        left to right    steps "3+4=2" "2*2=4" "4-1=3"    answer "3"
    variables     "a=3;b=a+4;c=b*2;c?"                               steps "3+4=2" "2*2=4"            answer "4"
    chains_nl     "Start with 3. Add 4. ... What is the result?"     steps "3 plus 4 is 2." ...
    variables_nl  "a is 3. b is a plus 4. ... What is c?"            steps "3 plus 4 is 2." ...

(values for m = 5). A problem is a start value and k pairs (operation, operand): m * (3 m)^k of them with k steps.
Splits are disjoint by construction: a hash of the problem, independent of the seed and the same for all four forms,
determines its split (80 % train, 5 % validation, 15 % test). Lengths are mixed on purpose: with one fixed length nothing
is learned (ours, small experiments).
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from kava.data.example import Example, stable_hash
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

log = logging.getLogger(__name__)

OPERATIONS = "+-*"
WORDS = {"+": ("Add", "plus"), "-": ("Subtract", "minus"), "*": ("Multiply by", "times")}
SHARES = {"train": range(0, 80), "validation": range(80, 85), "test": range(85, 100)}
ENUMERATE_UP_TO = 300_000


@dataclass(frozen=True, slots=True)
class Problem:
    """start, then (operation, operand) pairs, evaluated strictly left to right modulo `modulus`."""

    start: int
    pairs: tuple[tuple[str, int], ...]
    modulus: int

    def values(self) -> list[int]:
        """The start value and the value after each step."""
        values = [self.start]
        for operation, operand in self.pairs:
            a = values[-1]
            result = a + operand if operation == "+" else a - operand if operation == "-" else a * operand
            values.append(result % self.modulus)
        return values

    def chain(self) -> str:
        return str(self.start) + "".join(f"{op}{b}" for op, b in self.pairs)


def _variable(i: int) -> str:
    """a, b, .. z, a1, b1, .."""
    return "abcdefghijklmnopqrstuvwxyz"[i % 26] + (str(i // 26) if i >= 26 else "")


def _equations(p: Problem) -> list[str]:
    values = p.values()
    return [f"{a}{op}{b}={c}" for a, (op, b), c in zip(values, p.pairs, values[1:], strict=False)]


def _sentences(p: Problem) -> list[str]:
    values = p.values()
    return [f"{a} {WORDS[op][1]} {b} is {c}." for a, (op, b), c in zip(values, p.pairs, values[1:], strict=False)]


def _chains(p: Problem) -> str:
    return p.chain() + "?"


def _variables(p: Problem) -> str:
    lines = [f"{_variable(i + 1)}={_variable(i)}{op}{b};" for i, (op, b) in enumerate(p.pairs)]
    return f"a={p.start};" + "".join(lines) + f"{_variable(len(p.pairs))}?"


def _chains_nl(p: Problem) -> str:
    return " ".join([f"Start with {p.start}.", *(f"{WORDS[op][0]} {b}." for op, b in p.pairs), "What is the result?"])


def _variables_nl(p: Problem) -> str:
    lines = [f"{_variable(i + 1)} is {_variable(i)} {WORDS[op][1]} {b}." for i, (op, b) in enumerate(p.pairs)]
    return " ".join([f"a is {p.start}.", *lines, f"What is {_variable(len(p.pairs))}?"])


# name -> (question, steps, the cot_type that fits)
FORMS: dict[str, tuple[Callable[[Problem], str], Callable[[Problem], list[str]], str]] = {
    "chains": (_chains, _equations, "equation"),
    "variables": (_variables, _equations, "equation"),
    "chains_nl": (_chains_nl, _sentences, "natural_language"),
    "variables_nl": (_variables_nl, _sentences, "natural_language"),
}
BUILT_IN = tuple(FORMS)


class Generator:
    """`Generator("chains", config, seed).split("train")`, `.of_length("test", 3, 500)`: same arguments, same rows."""

    def __init__(self, name: str, config: "GeneratorConfig", seed: int = 0):
        if name not in FORMS:
            raise DataError(f"unknown built-in set {name!r}", f"one of: {', '.join(FORMS)}")
        if config.modulus < 2 or not 1 <= config.min_steps <= config.max_steps:
            raise DataError(
                f"built-in set {name}: modulus {config.modulus}, "
                f"min_steps {config.min_steps}, max_steps {config.max_steps}",
                "needs modulus >= 2 and 1 <= min_steps <= max_steps",
            )
        self.name, self.config, self.seed = name, config, seed
        self._question, self._steps, self.cot_type = FORMS[name]

    @property
    def lengths(self) -> range:
        return range(self.config.min_steps, self.config.max_steps + 1)

    def split(self, split: str) -> list[Example]:
        """Train: drawn with replacement, lengths uniform. Held out: distinct problems, lengths as even as possible."""
        if split == "train":
            return self._train()
        size = {"validation": self.config.val_size, "test": self.config.test_size}[split]
        counts = self._counts(split, size)
        return [example for steps, count in counts.items() for example in self.of_length(split, steps, count)]

    def of_length(self, split: str, steps: int, count: int) -> list[Example]:
        """`count` distinct problems of exactly `steps` steps that belong to `split`; DataError if there are fewer."""
        rng = random.Random(f"{self.seed}/{split}/{steps}")
        total = self._space(steps)
        if total <= ENUMERATE_UP_TO:
            indices = list(self._members(split, steps))
            if count > len(indices):
                raise DataError(
                    f"built-in set {self.name}: {count} {split} problems of {steps} steps were asked for, "
                    f"modulo {self.config.modulus} there are {len(indices)}",
                    "ask for fewer, or raise dataset.generator.modulus",
                )
            rng.shuffle(indices)
            indices = indices[:count]
        else:
            indices = self._rejection(split, steps, count, total, rng)
        return [
            self._example(problem_number(self.config.modulus, steps, i), f"{self.name}/{steps}/{i}") for i in indices
        ]

    def _train(self) -> list[Example]:
        rng = random.Random(f"{self.seed}/train")
        examples: list[Example] = []
        while len(examples) < self.config.train_size:
            steps = rng.choice(self.lengths)
            problem = problem_number(self.config.modulus, steps, rng.randrange(self._space(steps)))
            if split_of(problem) == "train":
                examples.append(self._example(problem, f"{self.name}/train/{len(examples)}"))
        return examples

    def _counts(self, split: str, size: int) -> dict[int, int]:
        """The number of problems of each length; what short lengths lack is taken from longer ones."""
        counts: dict[int, int] = {}
        left = size
        for done, steps in enumerate(self.lengths):
            share = left // (len(self.lengths) - done)
            space = self._space(steps)
            exist = len(self._members(split, steps)) if space <= ENUMERATE_UP_TO else self._plenty(split, space)
            counts[steps] = min(share, exist)
            left -= counts[steps]
        if left:
            log.warning(
                "built-in set %s: only %d distinct %s problems exist for modulus %d and %d..%d steps (%d asked for)",
                self.name, size - left, split, self.config.modulus, self.config.min_steps, self.config.max_steps, size,
            )  # fmt: skip
        return counts

    def _space(self, steps: int) -> int:
        m = self.config.modulus
        return m * (len(OPERATIONS) * m) ** steps

    def _plenty(self, split: str, total: int) -> int:
        """The most problems drawn by rejection: half of the expected number."""
        return total * len(SHARES[split]) // 200

    def _members(self, split: str, steps: int) -> tuple[int, ...]:
        return members(self.config.modulus, steps)[split]

    def _rejection(self, split: str, steps: int, count: int, total: int, rng: random.Random) -> list[int]:
        if count > self._plenty(split, total):
            raise DataError(
                f"built-in set {self.name}: {count} {split} problems of {steps} steps are too many to draw",
                f"at most {self._plenty(split, total)}",
            )
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            i = rng.randrange(total)
            if split_of(problem_number(self.config.modulus, steps, i)) == split:
                chosen[i] = None
        return list(chosen)

    def _example(self, problem: Problem, name: str) -> Example:
        return Example(name, self._question(problem), tuple(self._steps(problem)), str(problem.values()[-1]))


def split_of(problem: Problem) -> str:
    """The split of a problem, by a hash of its chain alone: splits never overlap, whatever the seed and sizes."""
    bucket = stable_hash(problem.chain(), "kava-built-in") % 100
    return next(split for split, buckets in SHARES.items() if bucket in buckets)


def problem_number(modulus: int, steps: int, index: int) -> Problem:
    """Problem number `index` of a length, 0 <= index < m * (3 m)^steps: the mixed-radix digits of the index."""
    pairs = []
    for _ in range(steps):
        index, operand = divmod(index, modulus)
        index, operation = divmod(index, len(OPERATIONS))
        pairs.append((OPERATIONS[operation], operand))
    return Problem(index, tuple(pairs), modulus)


@cache
def members(modulus: int, steps: int) -> dict[str, tuple[int, ...]]:
    """The indices of all problems of one length, by split."""
    by_split: dict[str, list[int]] = {split: [] for split in SHARES}
    for i in range(modulus * (len(OPERATIONS) * modulus) ** steps):
        by_split[split_of(problem_number(modulus, steps, i))].append(i)
    return {split: tuple(indices) for split, indices in by_split.items()}
