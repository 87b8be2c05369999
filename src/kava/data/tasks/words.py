"""Chains of arithmetic as text: start and (operation, operand) pairs, in signs and in words."""

from collections.abc import Sequence

from kava.data.tasks.problem_set import Pairs

WORDS = {"+": ("Add", "plus"), "-": ("Subtract", "minus"), "*": ("Multiply by", "times")}


def expression(start: int, pairs: Pairs) -> str:
    """ "3+4*2" """
    return str(start) + "".join(f"{op}{b}" for op, b in pairs)


def instructions(start: int, pairs: Pairs) -> str:
    """ "Start with 3. Add 4. What is the result?" """
    return " ".join([f"Start with {start}.", *(f"{WORDS[op][0]} {b}." for op, b in pairs), "What is the result?"])


def equations(values: Sequence[int], pairs: Pairs) -> tuple[str, ...]:
    """ "3+4=7" for each step; `values` are the start and the result of each step."""
    return tuple(f"{a}{op}{b}={c}" for a, (op, b), c in zip(values, pairs, values[1:], strict=False))


def sentences(values: Sequence[int], pairs: Pairs) -> tuple[str, ...]:
    """ "3 plus 4 is 7." for each step."""
    return tuple(f"{a} {WORDS[op][1]} {b} is {c}." for a, (op, b), c in zip(values, pairs, values[1:], strict=False))
