"""New rows from annotated ones: the numbers of a question are drawn again and every equation is recomputed.

    Redraw(question, steps, answer).draw(rng) -> (question, steps, answer), or None where nothing plausible was drawn

In the manner of GSM8k-AUG, but not its rows: the wording stays, no model writes anything. A row can be redrawn only if
each number of its equations is known to be one of three things: a number of the question (drawn again wherever it
stands), the result of an earlier equation (recomputed), or a constant that a word of the question stands for (7 and
"week"). Other rows, and those where a number could be two of these, are refused with the reason.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any

from kava.data.equations import Equation, NoRedrawError, places_of, plain
from kava.data.example import Example
from kava.data.rows import Parts
from kava.progress import track

TRIES = 200
STEPS_OF_A_NUMBER = (1000, 100, 50, 10, 5)  # a round number stays as round
LARGEST_CHANGE = 20  # times the result that the row had
SMALL = 12  # so small a number may also be a constant that nobody writes: five weekdays, the three of them
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|(?<!\d)\.\d+|\d+")
_WORDS_OF = {  # the constants that words stand for
    2: "half halves twice double doubled two couple pair pairs", 3: "three triple tripled thrice third thirds",
    4: "four quarter quarters fourth fourths quadruple", 5: "five fifth fifths weekday weekdays workday workdays",
    6: "six sixth", 7: "seven week weeks weekly", 8: "eight", 9: "nine", 10: "ten", 11: "eleven",
    12: "twelve dozen dozens year years yearly annual foot feet", 24: "day days daily", 60: "hour hours minute minutes",
    100: "cents percent dollar",
}  # fmt: skip
_WORDS = {word: value for value, words in _WORDS_OF.items() for word in words.split()}
_PERCENT = re.compile(r"\s*(?:%|percent)")
_EACH = r"s?\s+(?:a|an|per|each|every|in a|in the|of the)\s+"
_MOST = (  # what follows a number, and the largest number that may stand before it
    (_PERCENT, 99), (re.compile(rf"[\s-]*day{_EACH}week"), 7),
    (re.compile(rf"[\s-]*hour{_EACH}(?:day|night)"), 24), (re.compile(rf"[\s-]*day{_EACH}month"), 31),
    (re.compile(rf"[\s-]*month{_EACH}year"), 12), (re.compile(rf"[\s-]*minute{_EACH}hour"), 60),
    (re.compile(r"[\s-]*years?[\s-]old"), 100),
)  # fmt: skip


class Redraw:
    """A row whose numbers can be drawn again; NoRedrawError says why another row's cannot."""

    def __init__(self, question: str, steps: Sequence[str], answer: str):
        self.question = question
        self.equations = [Equation.read(step) for step in steps]
        if not self.equations:
            raise NoRedrawError("no equation")
        if plain(self.equations[-1].result) != answer.replace(",", ""):
            raise NoRedrawError("the last equation does not end in the answer")
        if any(equation.result <= 0 for equation in self.equations):
            raise NoRedrawError("a result is zero or negative")
        self.places = [(match, _value(match)) for match in _NUMBER.finditer(question)]
        fixed = {value for match, value in self.places if _is_fixed(match, value)}
        self.drawn = self._used({value for _, value in self.places}, fixed)

    def draw(self, rng: random.Random) -> Parts | None:
        """The row with other numbers; None if no draw of `TRIES` is plausible."""
        for _ in range(TRIES):
            values = {value: self._other(value, rng) for value in self.drawn}
            if values.keys() != set(values.values()) and self._in_order(values) and (new := self._recomputed(values)):
                steps = tuple(str(equation) for equation in new)
                return self._written(values), steps, plain(new[-1].result)
        return None

    def _used(self, in_question: set[Fraction], fixed: set[Fraction]) -> list[Fraction]:
        """The numbers to draw: those of the question that an equation uses."""
        words = {_WORDS[word] for word in re.findall(r"[a-z]+", self.question.lower()) if word in _WORDS}
        words |= {100} if "%" in self.question or "$" in self.question else set()
        percents = [value for match, value in self.places if _PERCENT.match(self.question[match.end() :])]
        hidden = {f for p in percents for f in (p / 100, 1 + p / 100, 1 - p / 100, 100 - p, 100 + p)} - in_question
        results: dict[Fraction, tuple[str, ...]] = {}
        used, stands = Counter[Fraction](), Counter(value for _, value in self.places)
        for equation in self.equations:
            for operand in equation.operands:
                if operand in results and (operand in in_question or operand in words):
                    raise NoRedrawError("a number of the question, or a word's, is also a result")
                if operand in hidden:
                    raise NoRedrawError("a number may be a percentage in another form")
                if operand in in_question:
                    used[operand] += 1
                elif operand not in results and operand not in words:
                    raise NoRedrawError("a number comes neither from the question nor from an earlier equation")
            if results.setdefault(equation.result, equation.pieces) != equation.pieces:
                raise NoRedrawError("two equations have the same result")
        if any(value not in used for value in in_question - fixed):
            raise NoRedrawError("a number of the question is in no equation")
        if not (drawn := [value for value in used if value not in fixed]):
            raise NoRedrawError("no number to draw")
        if any(value in words for value in drawn):
            raise NoRedrawError("a number of the question may also be a word's")
        if any(value <= SMALL and count > stands[value] for value, count in used.items()):
            raise NoRedrawError("a small number is used more often than it stands in the question")
        return drawn

    def _other(self, value: Fraction, rng: random.Random) -> Fraction:
        """A number of the same kind between half and twice as large: no more days in a week than there are."""
        behind = [self.question[match.end() :] for match, v in self.places if v == value]
        limits = [Fraction(most) for text in behind for pattern, most in _MOST if pattern.match(text)]
        decimals = max(_decimals(match[0]) for match, v in self.places if v == value)
        whole = next(
            (s for s in STEPS_OF_A_NUMBER if value * 10**decimals % s == 0 and value * 10**decimals >= 4 * s), 1
        )
        step = Fraction(whole, 10**decimals)
        least = max(value / 2, Fraction(2) if decimals == 0 else step)
        first, last = ceil(least / step), max(floor(min([2 * value, *limits]) / step), 1)
        return step * rng.randint(min(first, last), last)

    def _in_order(self, values: Mapping[Fraction, Fraction]) -> bool:
        """What was the smaller number is so still: of 30 marbles 12 are lost, not of 12 marbles 30."""
        kept = {value: values.get(value, value) for _, value in self.places}
        old = sorted(kept)
        return all(kept[a] < kept[b] for a, b in pairwise(old))

    def _recomputed(self, values: Mapping[Fraction, Fraction]) -> list[Equation] | None:
        """The equations with these numbers; None where a result is implausible."""
        known, equations = dict(values), []
        for equation in self.equations:
            try:
                new = equation.with_values(known)
            except ZeroDivisionError:
                return None
            if not _plausible(new.result, equation.result):
                return None
            known[equation.result] = new.result
            equations.append(new)
        results = sorted((old.result, new.result) for old, new in zip(self.equations, equations, strict=True))
        in_order = all(a[1] < b[1] for a, b in pairwise(results) if a[0] < b[0])
        return equations if in_order else None  # the winner, the cheaper one is who it was

    def _written(self, values: Mapping[Fraction, Fraction]) -> str:
        """The question with its numbers as they were written: commas, places behind the point."""
        text, end = "", 0
        for match, value in self.places:
            word = match[0]
            if value in values:
                new, places = values[value], _decimals(word)
                places = 0 if places == 1 and new.denominator == 1 else places  # 41 feet, not 41.0
                word = f"{float(new):,.{places}f}" if "," in word or new >= 10_000 else f"{float(new):.{places}f}"
            text, end = text + self.question[end : match.start()] + word, match.end()
        return text + self.question[end:]


@dataclass(frozen=True)
class Redrawn:
    """New rows, and of how many rows none was made for each reason."""

    rows: list[dict[str, Any]]
    refused: Counter[str]


def redraw(examples: Sequence[Example], copies: int, seed: int, progress: bool = True) -> Redrawn:
    """At most `copies` new rows of each example, no question twice, none that is an example's own."""
    questions = {example.question for example in examples}
    rows: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for example in track(examples, "drawing numbers", show=progress):
        try:
            pattern = Redraw(example.question, example.steps, example.answer)
        except NoRedrawError as error:
            refused[error.message] += 1
            continue
        made = 0
        for copy in range(copies):
            texts = pattern.draw(random.Random(f"{seed}/{example.id}/{copy}"))
            if texts is not None and texts[0] not in questions:
                questions.add(texts[0])
                names = ("question", "steps", "answer")
                rows.append({"id": f"{example.id}/{copy}", **dict(zip(names, texts, strict=True))})
                made += 1
        refused["no plausible numbers"] += not made
    return Redrawn(rows, +refused)


def _value(match: re.Match[str]) -> Fraction:
    return Fraction(match[0].replace(",", ""))


def _is_fixed(match: re.Match[str], value: Fraction) -> bool:
    """Whether a number is part of something else: 1/2, 3rd, 10:30, a year, a code, 16 ounces in a pound, or is 1."""
    text, start, end = match.string, match.start(), match.end()
    before, after = text[:start], text[end:]
    year = len(match[0]) == 4 and 1900 <= value <= 2099 and not before.endswith("$")
    beside = re.search(r"[\w/:#.^-]$", before) or re.match(r"[A-Za-z/:^]|-\d|\s*/\s*\d|\.\d", after)
    fact = re.search(r"\bthere (?:are|is)\s$", before, re.I) and re.match(
        r"\s\w+ (?:in|per|to) (?:an?|one|each) ", after
    )
    return value <= 1 or year or bool(beside) or bool(fact)


def _plausible(new: Fraction, old: Fraction) -> bool:
    """Positive, whole where it was whole, a share where it was one, at most cents, and not of another size."""
    if new <= 0 or not old / LARGEST_CHANGE <= new <= old * LARGEST_CHANGE:
        return False
    if old.denominator == 1:
        return new.denominator == 1
    places, most = places_of(new), max(2, places_of(old) or 0)
    return places is not None and places <= most and (old >= 1 or new < 1)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])
