"""Annotated equations, `<<48/2=24>>`, read and recomputed with exact fractions."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from kava.data.rows import ANNOTATION
from kava.errors import DataError

_OPERAND = re.compile(r"\d+\.?\d*|\.\d+")


class NoRedrawError(DataError):
    """Why a row cannot be drawn again."""


@dataclass(frozen=True)
class Equation:
    """The left side in pieces, every other one a number, and the result."""

    pieces: tuple[str, ...]
    result: Fraction

    @classmethod
    def read(cls, step: str) -> "Equation":
        """The equation of a step, with or without <<>>; NoRedrawError where it is none, rounded or wrong."""
        annotation = ANNOTATION.fullmatch(step.strip())
        left, equals, right = (annotation[0][2:-2] if annotation else step).partition("=")
        arithmetic = re.search(r"[\d)] *[-+*/]", left) and not re.search(r"[^-\d.+*/() ]", left)
        if not equals or not arithmetic or not _OPERAND.fullmatch(right.strip()):
            raise NoRedrawError("an equation is no arithmetic")
        left = re.sub(r"(?<![\d.])0+(?=\d)", "", left.replace(" ", ""))  # 05 is no number of Python's
        try:
            value = value_of(left)
        except ZeroDivisionError as error:
            raise NoRedrawError("an equation divides by zero") from error
        if value != Fraction(right.strip()):
            raise NoRedrawError("an equation is rounded or wrong")
        pieces, end = [], 0
        for operand in _OPERAND.finditer(left):
            pieces += [left[end : operand.start()], operand[0]]
            end = operand.end()
        return cls((*pieces, left[end:]), value)

    @property
    def operands(self) -> list[Fraction]:
        return [Fraction(piece) for piece in self.pieces[1::2]]

    def with_values(self, values: Mapping[Fraction, Fraction]) -> "Equation":
        """The equation with other operands, recomputed; a ZeroDivisionError where they divide by zero."""
        pieces = list(self.pieces)
        pieces[1::2] = (plain(values.get(operand, operand)) for operand in self.operands)
        return Equation(tuple(pieces), value_of("".join(pieces)))

    def __str__(self) -> str:
        return f"<<{''.join(self.pieces)}={plain(self.result)}>>"


def plain(value: Fraction) -> str:
    """A number as the equations write it: 12, 0.75; one that no decimal writes is an error."""
    places = places_of(value)
    if places is None:
        raise NoRedrawError("a number has no end behind the point")
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return ("-" if value < 0 else "") + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def value_of(expression: str) -> Fraction:
    """The exact value of numbers, + - * / and brackets; NoRedrawError for anything else."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body, expression)
    except SyntaxError as error:
        raise NoRedrawError("an equation is no arithmetic") from error


def _evaluate(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(text, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, text)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, text), _evaluate(node.right, text)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise NoRedrawError("an equation is no arithmetic")


def places_of(value: Fraction) -> int | None:
    """Digits behind the point; None where they have no end."""
    rest, places = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest, count = rest // factor, count + 1
        places = max(places, count)
    return places if rest == 1 else None
