"""Reads the final number of a generated text, for inference and evaluation (gold answers: data/rows.py). No torch.

    strict    the number right after the last "The answer is:" or "####", or the first one inside the last \\boxed{}
    flexible  the strict one, or else the last number of the text

Both give the number in plain form: no currency, no thousands separators ("-$1,234.50" -> "-1234.50", "50 %" -> "50%").

What the documents leave open, decided here (ours): a clock time or ratio (12:30) is no number; a minus after a number,
a bracket or a letter is an operator or a hyphen ("4-2" ends in 2, "GPT-2" in 2); a sign separated from its number by a
space counts only at the beginning or after = : ( ("= - 3"); at the start of a line it is a bullet; four or more single
digits with a space between each are one number ("5 5 6 0", iCoT's products), which equals only the same digits.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

_NUMBER = re.compile(
    r"(?P<spaced>(?<![\w.,:/+-])(?<!\d )\d(?: \d){3,}(?!\w)(?! ?[.,:/]?\d))"
    r"|(?P<clock>\d+(?::\d+)+)"
    r"|(?:(?P<sign>[-+])(?P<gap>\s?))?(?:[$\u00a3\u20ac]\s?)?(?P<inner>[-+])?"
    r"(?P<body>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)(?P<exp>[eE][-+]?\d{1,3}(?!\d))?"
    r"(?:\s?/\s?(?P<den>\d+(?:\.\d+)?))?(?P<pct>\s?(?:%|percent\b))?"
)
_MARK = re.compile(r"the\s+answer\s+is\s*:?|####", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\{,\}|\\[,!;](?=\d)"), ""),  # 1{,}000 and 1\,000
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile("\u2212"), "-"),
)
_MAX_DIGITS = 400  # longer numbers come from a model that repeats itself
_RELATIVE, _ABSOLUTE = Fraction(1, 10**6), Fraction(1, 1000)


def strict(text: str) -> str | None:
    """The number that the text itself marks as its answer, or None."""
    text = _plain(text)
    boxed = list(_BOXED.finditer(text))
    marks = list(_MARK.finditer(text))
    if boxed and (not marks or boxed[-1].start() > marks[-1].start()):
        return next((word for _, word in _numbers(boxed[-1].group(1))), None)
    if not marks:
        return None
    rest = text[marks[-1].end() :].lstrip()
    start, word = next(_numbers(rest), (0, None))
    return None if re.search(r"[^\W_]", rest[:start]) else word


def flexible(text: str) -> str | None:
    """The marked number, or else the last number of the text, or None."""
    marked = strict(text)
    if marked is not None:
        return marked
    return ([None] + [word for _, word in _numbers(_plain(text))])[-1]


def number(text: str | None) -> Fraction | None:
    """The value of the first number in a text: 1,234  -3  $5.00  3/4  50 %  1e3; None where there is none."""
    word = _first(text)
    if word is None or len(word) > _MAX_DIGITS:
        return None
    top, _, bottom = word.replace(" ", "").rstrip("%").partition("/")
    if bottom and not Fraction(bottom):
        return None
    value = Fraction(top) / Fraction(bottom or 1)
    return value / 100 if word.endswith("%") else value


def equal(answer: str | None, gold: str | None) -> bool:
    """True for the same number. Decimals may differ by 1e-6 of their size and by 1e-3 at most (ours), whole numbers not at all.

    50 % equals 0.5 and also 50: the datasets ask for percentages and leave the sign out (ours).
    """
    left, right = number(answer), number(gold)
    if left is None or right is None:
        return False
    words = _first(answer) or "", _first(gold) or ""
    if any(" " in word for word in words):  # spaced digits, where a zero at the front is a digit like any other
        return words[0] == words[1]
    left_percent, right_percent = (str(text).rstrip().endswith(("%", "percent")) for text in (answer, gold))
    if left_percent != right_percent:
        return _near(left, right) or _near(left * (100 if left_percent else 1), right * (100 if right_percent else 1))
    return _near(left, right)


def _first(text: str | None) -> str | None:
    """The first number in a text, in plain form."""
    return next((word for _, word in _numbers(_plain(text or ""))), None)


def _near(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= min(_ABSOLUTE, _RELATIVE * max(abs(left), abs(right)))


def _plain(text: str) -> str:
    """The text with LaTeX number notation and the typographic minus replaced by plain characters."""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _numbers(text: str) -> Iterator[tuple[int, str]]:
    """Start position and plain form of each number."""
    for match in _NUMBER.finditer(text):
        if match["clock"]:
            continue
        if match["spaced"]:
            yield match.start(), match["spaced"]
            continue
        minus = match["inner"] == "-" or (match["sign"] == "-" and _is_sign(text[: match.start()], match["gap"]))
        body = match["body"].replace(",", "") + (match["exp"] or "")
        bottom = "/" + match["den"] if match["den"] else ""
        yield match.start(), ("-" if minus else "") + body + bottom + ("%" if match["pct"] else "")


def _is_sign(before: str, gap: str) -> bool:
    """True if a minus after the text `before` is a sign; False for an operator, a hyphen or a bullet."""
    if gap:
        return not before.strip() or before.rstrip(" ")[-1] in "=:("
    last = before.rstrip()[-1:]
    if last.isdigit() or last in (")", "%"):
        return False
    return not before[-1:].isalnum()
