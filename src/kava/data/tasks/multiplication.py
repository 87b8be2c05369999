"""k x k digits multiplied as iCoT's data do it (arXiv 2405.14838): digits with spaces, the lowest first.

    question  "5 6 3 2 * 7 4 3 4"        2365 * 4347
    steps     "5 5 5 6 1"                2365 * 7
              "+ 0 0 6 4 9 0 ( 5 5 1 1 1 1 )"        2365 * 40, and the sum so far
              "+ 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 )"
              "+ 0 0 0 0 6 4 9 0"                    the last sum is the answer
    answer    "5 5 6 0 8 2 0 1"          10280655

Partial product i has k + 1 + i digits, zeros above included, and the answer 2 k.
"""

import random
from typing import TYPE_CHECKING

from kava.data.tasks.problem_set import SHARES, ProblemSet, Texts, split_of
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

Factors = tuple[int, int]


class Multiplication(ProblemSet[Factors]):
    card = "multiplication"

    def __init__(self, name: str, config: "GeneratorConfig"):
        super().__init__(name, config)
        if config.digits < 2:
            problem = f"built-in set {name}: dataset.generator.digits is {config.digits}"
            raise DataError(problem, "needs at least 2: products of one digit have no steps")

    @property
    def lengths(self) -> range:
        return range(self.config.digits, self.config.digits + 1)

    def check_length(self, steps: int) -> None:
        if steps != self.config.digits:
            raise DataError(
                f"built-in set {self.name}: numbers of {self.config.digits} digits are multiplied in as many steps, "
                f"not in {steps}",
                "set dataset.generator.digits",
            )

    def draw(self, rng: random.Random, steps: int) -> Factors:
        return self._number(rng.randrange(self.count(steps)))

    def key(self, problem: Factors) -> str:
        return f"{problem[0]}*{problem[1]}"

    def count(self, steps: int) -> int:
        return int(9 * 10 ** (steps - 1)) ** 2

    def members(self, steps: int) -> dict[str, tuple[Factors, ...]]:
        by_split: dict[str, list[Factors]] = {split: [] for split in SHARES}
        for problem in map(self._number, range(self.count(steps))):
            by_split[split_of(self.key(problem))].append(problem)
        return {split: tuple(problems) for split, problems in by_split.items()}

    def _number(self, index: int) -> Factors:
        low = 10 ** (self.config.digits - 1)
        a, b = divmod(index, 9 * low)
        return low + a, low + b

    def texts(self, problem: Factors) -> Texts:
        a, b = problem
        k, total, steps = len(str(a)), 0, []
        for place, digit in enumerate(reversed(str(b))):
            part = a * int(digit) * 10**place
            total += part
            written = _digits(part, k + 1 + place)
            if place == 0:
                steps.append(written)
            elif place < k - 1:
                steps.append(f"+ {written} ( {_digits(total, k + 1 + place)} )")
            else:
                steps.append(f"+ {written}")
        return Texts(f"{_digits(a, k)} * {_digits(b, k)}", tuple(steps), _digits(total, 2 * k))


def _digits(value: int, width: int) -> str:
    """ "5 6 3 2" for 2365, the lowest digit first, filled with zeros to `width`."""
    return " ".join(reversed(str(value).zfill(width)))
