"""What is odd about the rows of one split, though each can be read: counted, with the first row of each kind.

None of it stops a training: sets as large as GSM8k-AUG have some. A row that cannot be read is an error where it is read.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kava import answers
from kava.data.example import Example
from kava.data.fields import STEPS, misspelt, unread_steps
from kava.data.rows import Row
from kava.data.spans import NUMBER, equation_result

REMEMBERED = 2_000_000  # rows that later ones are compared with
REMEMBERED_OF_STREAM = 100_000  # of rows that are read to need no memory
_PLAIN_NUMBER = re.compile(r"[-+]?[$\u00a3\u20ac]?\s?[-+]?[\d,]*\.?\d+\s?%?")


class RowChecks:
    """`add` every row as it is read; `messages` then says what to look at."""

    def __init__(self, cot_type: str, remembered: int = REMEMBERED):
        self.cot_type, self.remembered = cot_type, remembered
        self.rows = 0
        self._answers: dict[int, int] = {}  # hash of a question -> hash of its first answer
        self._ids: set[Any] = set()
        self._kinds: dict[str, tuple[int, str]] = {}  # what is odd -> how many rows, the first of them

    def add(self, where: str, row: Row, example: Example, any_fields: bool = False) -> None:
        """`any_fields`: the row may have fields of any name, those of a published set."""
        self.rows += 1
        question, answer = hash(question_key(example.question)), hash(example.answer)
        before = self._answers.get(question)
        if before is not None:
            same = before == answer
            self._note(f"the question of an earlier row and {'the same' if same else 'another'} answer", where)
        elif self.rows <= self.remembered:
            self._answers[question] = answer
        own = row.get("id")
        if own is not None:
            if own in self._ids:
                self._note("the id of an earlier row", f"{where}: {own!r}")
            elif self.rows <= self.remembered:
                self._ids.add(own)
        for field, meant in () if any_fields else misspelt(tuple(row)):
            self._note(f"a field {field!r}, which is not read; {meant!r} is", where)
        for field in [] if any_fields or example.steps else unread_steps(row):
            self._note(f"no steps, but a field {field!r}, which is not read; the chain of thought is {STEPS!r}", where)
        if example.steps and (result := other_result(example.steps, example.answer, self.cot_type)) is not None:
            self._note("steps that end in another number than the answer", f"{where}: {result}, not {example.answer}")

    def messages(self) -> list[str]:
        """One line for each kind."""
        total = self.rows
        return [f"{count} of {total} rows have {what} (first: {first})" for what, (count, first) in self._kinds.items()]

    def _note(self, what: str, where: str) -> None:
        count, first = self._kinds.get(what, (0, where))
        self._kinds[what] = (count + 1, first)


def question_key(question: str) -> str:
    """The same for questions that differ in case and spaces only."""
    return " ".join(question.lower().split())


def shared(examples: Iterable[Example], other: Iterable[Example]) -> list[Example]:
    """The examples whose question is in `other`, too."""
    keys = {question_key(example.question) for example in other}
    return [example for example in examples if question_key(example.question) in keys]


def other_result(steps: Sequence[str], answer: str, cot_type: str) -> str | None:
    """The number that the last step ends in, if it is not the answer; None where they agree or one is no number."""
    last = steps[-1]
    if cot_type == "equation":
        span = equation_result(last)
        result = last[slice(*span)] if span is not None else ""
        if result == answer or not _PLAIN_NUMBER.fullmatch(result) or answers.number(answer) is None:
            return None
        return None if answers.equal(result, answer) else result
    if answer in last or answers.number(answer) is None:
        return None
    numbers = [match.group() for match in NUMBER.finditer(last)]
    return None if not numbers or any(answers.equal(number, answer) for number in numbers) else numbers[-1]
