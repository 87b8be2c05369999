"""The one reader of answers, used for data, inference and evaluation alike. Level 0: text in, number out.

    strict    the number right after the last "The answer is:", "####" or inside the last \\boxed{}
    flexible  the strict one, or else the last number of the text
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?P<sign>[-+]\s?)?(?P<cur>[$\u00a3\u20ac]\s?)?(?P<sign2>[-+])?"
    r"(?P<body>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?P<exp>[eE][-+]?\d+)?"
    r"(?:\s?/\s?(?P<den>\d+))?(?P<pct>\s?(?:%|percent\b))?"
)
_MARK = re.compile(r"(?:the\s+answer\s+is\s*:?|####)\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def strict(text: str) -> str | None:
    """The number that the text itself marks as its answer, or None."""
    boxed = list(_BOXED.finditer(text))
    marks = list(_MARK.finditer(text))
    if boxed and (not marks or boxed[-1].start() > marks[-1].start()):
        return _first(boxed[-1].group(1))
    if marks:
        rest = text[marks[-1].end() :]
        found = _NUMBER.search(rest)
        return found.group(0).strip() if found and not re.search(r"[A-Za-z0-9]", rest[: found.start()]) else None
    return None


def flexible(text: str) -> str | None:
    """The marked number, or else the last number of the text, or None."""
    marked = strict(text)
    if marked is not None:
        return marked
    found = [match for match in _NUMBER.finditer(text)]
    return _clean(text, found[-1]) if found else None


def number(text: str | None) -> Fraction | None:
    """The value of one number as written: 1,234  -3  $5.00  3/4  50 %  1e3."""
    if text is None:
        return None
    match = _NUMBER.search(text)
    if match is None:
        return None
    value = Fraction(match["body"].replace(",", "") + (match["exp"] or ""))
    if match["den"]:
        if int(match["den"]) == 0:
            return None
        value /= int(match["den"])
    if match["pct"]:
        value /= 100
    sign = _clean(text, match)[0]
    return -value if sign == "-" or match["sign2"] == "-" else value


def equal(given: str | None, gold: str | None) -> bool:
    """The same number: exactly, or to 1e-6 of its size where one side is a decimal fraction.

    A percentage also equals its bare number (50 % and 50), because data sets drop the sign as they like.
    """
    left, right = number(given), number(gold)
    if left is None or right is None:
        return False
    if _near(left, right):
        return True
    bare = [value * 100 if side and "%" in side else value for value, side in ((left, given), (right, gold))]
    return _near(bare[0], bare[1])


def _near(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= Fraction(1, 10**6) * max(abs(left), abs(right), 1) if left != right else True


def _first(text: str) -> str | None:
    match = _NUMBER.search(text)
    return _clean(text, match) if match else None


def _clean(text: str, match: re.Match[str]) -> str:
    """The match without a sign that belongs to what stands before it: the 2 of "4-2" is 2."""
    before = text[: match.start()].rstrip()
    word = match.group(0).strip()
    if match["sign"] and before and (before[-1].isalnum() or before[-1] == ")"):
        return word[len(match["sign"].strip()) :].strip()
    return word
