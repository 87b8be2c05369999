"""Two models on the same items: is one better?"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import NamedTuple


class Paired(NamedTuple):
    """Items that only the first or only the second gets right, and McNemar's exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """p = min(1, 2 P(X <= min(b, c))), X binomial(b + c, 1/2): items on which both agree say nothing."""
    pairs = list(zip(first, second, strict=True))
    b = sum(one and not two for one, two in pairs)
    c = sum(two and not one for one, two in pairs)
    tail = Fraction(sum(comb(b + c, k) for k in range(min(b, c) + 1)), 2 ** (b + c))
    return Paired(b, c, float(min(Fraction(1), 2 * tail)))
