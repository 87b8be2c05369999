"""Built-in data: seeded problems of mixed length with disjoint splits; needs no file and no network.

Splits are disjoint by construction: a hash of the problem, independent of the seed and the same for all forms of a
task, determines its split (80 % train, 5 % validation, 15 % test). Lengths are mixed on purpose: with one fixed length
nothing is learned (ours, small experiments). The kinds of problems are in `kava.data.tasks`.
"""

import logging
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

from kava.data.example import Example
from kava.data.tasks import TASKS
from kava.data.tasks.problem_set import SHARES, split_of
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

log = logging.getLogger(__name__)

BUILT_IN = tuple(TASKS)
ENUMERATE_UP_TO = 300_000
FRUITLESS = 2_000  # draws in a row that bring nothing new: what is left is then rarer than one in some hundred


class Generator:
    """`Generator("chains", config, seed).split("train")`, `.of_length("test", 3, 500)`: same arguments, same rows."""

    def __init__(self, name: str, config: "GeneratorConfig", seed: int = 0):
        if name not in TASKS:
            raise DataError(f"unknown built-in set {name!r}", f"one of: {', '.join(TASKS)}")
        self.name, self.config, self.seed = name, config, seed
        self.task = TASKS[name](name, config)

    def split(self, split: str) -> list[Example]:
        """Train: drawn with replacement, lengths uniform. Held out: distinct problems, lengths as even as possible."""
        if split == "train":
            return self._train()
        size = {"validation": self.config.val_size, "test": self.config.test_size}[split]
        examples: list[Example] = []
        lengths = self.task.lengths
        for done, steps in enumerate(lengths):  # what short lengths lack is taken from longer ones
            examples += self._distinct(split, steps, (size - len(examples)) // (len(lengths) - done))
        if len(examples) < size:
            log.warning(
                "built-in set %s: only %d distinct %s problems of %d..%d steps exist with these settings (%d asked for)",
                self.name, len(examples), split, lengths[0], lengths[-1], size,
            )  # fmt: skip
        return examples

    def of_length(self, split: str, steps: int, count: int) -> list[Example]:
        """`count` distinct problems of exactly `steps` steps that belong to `split`; DataError if there are fewer."""
        most = self._most(split, steps)
        examples = self._distinct(split, steps, count) if most is None or count <= most else []
        if len(examples) < count:
            raise DataError(
                f"built-in set {self.name}: {count} {split} problems of {steps} steps were asked for, "
                f"there are {len(examples) if most is None else most} to draw from",
                "ask for fewer, or for larger numbers (dataset.generator)",
            )
        return examples

    def questions(self, count: int) -> list[str]:
        """At most `count` questions of the longest problems, of the test split; always the same, at once."""
        rng, steps = random.Random(0), self.task.lengths[-1]
        drawn = (self.task.draw(rng, steps) for _ in range(1000))
        unseen = islice((problem for problem in drawn if split_of(self.task.key(problem)) == "test"), count)
        return list(dict.fromkeys(self.task.texts(problem).question for problem in unseen))

    def _train(self) -> list[Example]:
        rng = random.Random(f"{self.seed}/train")
        examples: list[Example] = []
        while len(examples) < self.config.train_size:
            steps = rng.choice(self.task.lengths)
            problem = self.task.draw(rng, steps)
            if split_of(self.task.key(problem)) == "train":
                examples.append(Example(f"{self.name}/train/{len(examples)}", *self.task.texts(problem)))
        return examples

    def _most(self, split: str, steps: int) -> int | None:
        """How many distinct problems of a length are given: all where they are enumerated, else half of the expected."""
        self.task.check_length(steps)
        total = self.task.count(steps)
        if total is None:  # not known before they are drawn
            return None
        few = total <= ENUMERATE_UP_TO
        return len(self.task.members(steps)[split]) if few else total * len(SHARES[split]) // 200

    def _distinct(self, split: str, steps: int, count: int) -> list[Example]:
        """`count` distinct problems of one length, fewer where there are no more."""
        most, total = self._most(split, steps), self.task.count(steps)
        count = count if most is None else min(count, most)
        rng = random.Random(f"{self.seed}/{split}/{steps}")
        if total is not None and total <= ENUMERATE_UP_TO:
            problems = list(self.task.members(steps)[split])
            rng.shuffle(problems)
        else:
            problems = self._drawn(split, steps, count, rng)
        return [self._example(problem, steps) for problem in problems[:count]]

    def _drawn(self, split: str, steps: int, count: int, rng: random.Random) -> list[Any]:
        """Distinct problems as they are drawn, until there are enough or nothing new comes."""
        problems, fruitless = dict[str, Any](), 0
        while len(problems) < count and fruitless < FRUITLESS:
            problem = self.task.draw(rng, steps)
            key = self.task.key(problem)
            fruitless = fruitless + 1 if key in problems or split_of(key) != split else 0
            if not fruitless:
                problems[key] = problem
        return list(problems.values())

    def _example(self, problem: Any, steps: int) -> Example:
        return Example(f"{self.name}/{steps}/{self.task.id(problem)}", *self.task.texts(problem))
