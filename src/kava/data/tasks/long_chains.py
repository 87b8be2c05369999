"""Arithmetic without a modulus, strictly left to right; every number and every result has `digits` digits.

    long_chains     "12+34-16*3?"                   steps "12+34=46" "46-16=30" "30*3=90"    answer "90"
    long_chains_nl  "Start with 12. Add 34. ..."    steps "12 plus 34 is 46." ...

(digits = 2). A multiplier is one digit, 2 to 9. The operation is drawn among those that leave a result of that size,
then the operand among those that do. A result is several tokens; three to six steps have 23 to 53 of them where a token
is a character, so that M = 24 leaves some out: the paper's regime.
"""

import random
from dataclasses import dataclass

from kava.data.tasks.problem_set import Pairs, ProblemSet, Texts
from kava.data.tasks.words import equations, expression, instructions, sentences


@dataclass(frozen=True, slots=True)
class LongChain:
    """The start and the result of each step, and the (operation, operand) pairs between them."""

    values: tuple[int, ...]
    pairs: Pairs


class LongChains(ProblemSet[LongChain]):
    card = "long-chains"

    def draw(self, rng: random.Random, steps: int) -> LongChain:
        low, high = 10 ** (self.config.digits - 1), 10**self.config.digits - 1
        values, pairs = [rng.randint(low, high)], []
        for _ in range(steps):
            a = values[-1]
            operands = {"+": (low, high - a), "-": (low, a - low), "*": (2, min(9, high // a))}
            operation = rng.choice([sign for sign, (least, most) in operands.items() if least <= most])
            b = rng.randint(*operands[operation])
            values.append({"+": a + b, "-": a - b, "*": a * b}[operation])
            pairs.append((operation, b))
        return LongChain(tuple(values), tuple(pairs))

    def key(self, problem: LongChain) -> str:
        return expression(problem.values[0], problem.pairs)

    def texts(self, problem: LongChain) -> Texts:
        question = expression(problem.values[0], problem.pairs) + "?"
        return Texts(question, equations(problem.values, problem.pairs), str(problem.values[-1]))


class LongChainsNL(LongChains):
    cot_type = "natural_language"

    def texts(self, problem: LongChain) -> Texts:
        question = instructions(problem.values[0], problem.pairs)
        return Texts(question, sentences(problem.values, problem.pairs), str(problem.values[-1]))
