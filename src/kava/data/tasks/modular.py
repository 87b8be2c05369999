"""Arithmetic modulo m, strictly left to right: a start value and k pairs, m * (3 m)^k problems of k steps.

    chains        "3+4*2-1?"                        left to right    steps "3+4=2" "2*2=4" "4-1=3"    answer "3"
    variables     "a=3;b=a+4;c=b*2;c?"                               steps "3+4=2" "2*2=4"            answer "4"
    chains_nl     "Start with 3. Add 4. ... What is the result?"     steps "3 plus 4 is 2." ...
    variables_nl  "a is 3. b is a plus 4. ... What is c?"            steps "3 plus 4 is 2." ...

(values for m = 5). The four forms have the same problems, each in the same split.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from kava.data.tasks.problem_set import SHARES, Pairs, ProblemSet, Texts, split_of
from kava.data.tasks.words import WORDS, equations, expression, instructions, sentences
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

OPERATIONS = "+-*"


@dataclass(frozen=True, slots=True)
class ModularProblem:
    """start, then (operation, operand) pairs, evaluated strictly left to right modulo `modulus`."""

    start: int
    pairs: Pairs
    modulus: int

    def values(self) -> list[int]:
        """The start value and the value after each step."""
        values = [self.start]
        for operation, operand in self.pairs:
            a = values[-1]
            result = a + operand if operation == "+" else a - operand if operation == "-" else a * operand
            values.append(result % self.modulus)
        return values

    def number(self) -> int:
        """Its place among the problems of its length; `problem_number` is the inverse."""
        number = self.start
        for operation, operand in reversed(self.pairs):
            number = (number * len(OPERATIONS) + OPERATIONS.index(operation)) * self.modulus + operand
        return number


class Chains(ProblemSet[ModularProblem]):
    card = "built-in"

    def __init__(self, name: str, config: "GeneratorConfig"):
        super().__init__(name, config)
        if config.modulus < 2:
            raise DataError(f"built-in set {name}: modulus {config.modulus}", "needs modulus >= 2")

    def draw(self, rng: random.Random, steps: int) -> ModularProblem:
        return problem_number(self.config.modulus, steps, rng.randrange(self.count(steps)))

    def key(self, problem: ModularProblem) -> str:
        return expression(problem.start, problem.pairs)

    def id(self, problem: ModularProblem) -> str:
        return str(problem.number())

    def count(self, steps: int) -> int:
        m = self.config.modulus
        return m * (len(OPERATIONS) * m) ** steps

    def members(self, steps: int) -> dict[str, tuple[ModularProblem, ...]]:
        return modular_members(self.config.modulus, steps)

    def texts(self, problem: ModularProblem) -> Texts:
        values = problem.values()
        return Texts(self.question(problem), self.steps(values, problem.pairs), str(values[-1]))

    def question(self, p: ModularProblem) -> str:
        return expression(p.start, p.pairs) + "?"

    def steps(self, values: list[int], pairs: Pairs) -> tuple[str, ...]:
        return equations(values, pairs)


class ChainsNL(Chains):
    cot_type = "natural_language"

    def question(self, p: ModularProblem) -> str:
        return instructions(p.start, p.pairs)

    def steps(self, values: list[int], pairs: Pairs) -> tuple[str, ...]:
        return sentences(values, pairs)


class Variables(Chains):
    def question(self, p: ModularProblem) -> str:
        lines = [f"{variable(i + 1)}={variable(i)}{op}{b};" for i, (op, b) in enumerate(p.pairs)]
        return f"a={p.start};" + "".join(lines) + f"{variable(len(p.pairs))}?"


class VariablesNL(ChainsNL):
    def question(self, p: ModularProblem) -> str:
        lines = [f"{variable(i + 1)} is {variable(i)} {WORDS[op][1]} {b}." for i, (op, b) in enumerate(p.pairs)]
        return " ".join([f"a is {p.start}.", *lines, f"What is {variable(len(p.pairs))}?"])


def variable(i: int) -> str:
    """a, b, .. z, a1, b1, .."""
    return "abcdefghijklmnopqrstuvwxyz"[i % 26] + (str(i // 26) if i >= 26 else "")


def problem_number(modulus: int, steps: int, index: int) -> ModularProblem:
    """Problem number `index` of a length, 0 <= index < m * (3 m)^steps: the mixed-radix digits of the index."""
    pairs = []
    for _ in range(steps):
        index, operand = divmod(index, modulus)
        index, operation = divmod(index, len(OPERATIONS))
        pairs.append((OPERATIONS[operation], operand))
    return ModularProblem(index, tuple(pairs), modulus)


@cache
def modular_members(modulus: int, steps: int) -> dict[str, tuple[ModularProblem, ...]]:
    """All problems of one length, by split."""
    by_split: dict[str, list[ModularProblem]] = {split: [] for split in SHARES}
    for i in range(modulus * (len(OPERATIONS) * modulus) ** steps):
        problem = problem_number(modulus, steps, i)
        by_split[split_of(expression(problem.start, problem.pairs))].append(problem)
    return {split: tuple(problems) for split, problems in by_split.items()}
