"""Character spans of the steps' results, which the `steps` compressor keeps.

Equation step "<<16-3-4=9>>": after the last "=", up to ">>" or the end.  Sentence: its last number.  [ours]
"""

import re
from collections.abc import Sequence

# a minus belongs to the number only if it cannot be the operator of "10-5"
NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])-?\.\d+")

Span = tuple[int, int]


def equation_result(step: str) -> Span | None:
    """[start, end) of the result in an equation step; None without "=" or with nothing after it."""
    equals = step.rfind("=")
    if equals < 0:
        return None
    close = step.find(">>", equals)
    text = step[equals + 1 : len(step) if close < 0 else close]
    start = equals + 1 + len(text) - len(text.lstrip())
    end = start + len(text.strip().rstrip(";,. "))
    return (start, end) if end > start else None


def sentence_result(step: str) -> Span | None:
    """[start, end) of the last number of a sentence; None if it has none."""
    numbers = list(NUMBER.finditer(step))
    return numbers[-1].span() if numbers else None


WHOLE_STEP = "whole_step"  # of steps that are results alone
RESULT_OF = {"equation": equation_result, "natural_language": sentence_result}


def result_spans(steps: Sequence[str], cot_type: str) -> list[Span]:
    """The spans of all steps' results as positions in " ".join(steps)."""
    spans, start = [], 0
    for step in steps:
        span = (0, len(step)) if cot_type == WHOLE_STEP else RESULT_OF[cot_type](step)
        if span is not None:
            spans.append((start + span[0], start + span[1]))
        start += len(step) + 1
    return spans


def overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """True for each token that shares a character with a span; both lists are in text order."""
    flags = [False] * len(offsets)
    first = 0
    for j, (start, end) in enumerate(offsets):
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        flags[j] = first < len(spans) and end > start and end > spans[first][0]
    return flags


def firsts(offsets: Sequence[Span], steps: Sequence[str]) -> list[bool]:
    """True for each token that is the first with a character of a step of " ".join(steps)."""
    flags, begin, rest = [], 0, list(steps)
    for _, end in offsets:
        new = False
        while rest and end > begin:
            new = True
            begin += len(rest.pop(0)) + 1
        flags.append(new)
    return flags
