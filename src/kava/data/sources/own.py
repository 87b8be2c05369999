"""Rows of the user's own datasets; their fields determine how they are read.

    {"question": ..., "steps": [...], "answer": ...}                                    as aug.py
    {"question": ..., "answer": "worked solution <<1+1=2>> ... #### 2"}                 as gsm8k.py
    {"input", "code", "target"}, {"Body", "Question", "Answer"}                         as gsm_hard.py, svamp.py
    {"prompt" | "question" | "problem": ..., "target" | "answer" | "answer_text": ...}  no steps (N_C = 0)

The first form whose fields are all present is used.
"""

from kava.data.fields import ANSWER, QUESTION, STEPS, misspelt
from kava.data.rows import Parts, Row, answer, present, text
from kava.data.sources import aug, gsm8k, gsm_hard, svamp
from kava.errors import DataError


def parse(row: Row, where: str, cot_type: str) -> Parts:
    if row.get("steps") is not None:
        return aug.parse(row, where, cot_type)
    if {"input", "code", "target"} <= row.keys():
        return gsm_hard.parse(row, where, cot_type)
    if {"Body", "Question", "Answer"} <= row.keys():
        return svamp.parse(row, where, cot_type)
    for field, meant in misspelt(tuple(row)):
        if meant == STEPS and "steps" not in row:
            hint = "rename it, or the row is read as one without steps; if it is something else, give it another name"
            raise DataError(f"{where}: there is no field {STEPS!r}, but one called {field!r}", hint)
    question = text(row, QUESTION, where)
    field = present(row, ANSWER, where)
    value = answer(row, ANSWER, where)
    if "####" in value:
        return (question, *gsm8k.solution(value, where, field, cot_type))
    if "<<" in value:
        raise DataError(
            f"{where}: field {field!r} has <<..>> annotations but no '#### number' behind them",
            "end the solution with '#### number', or give steps and answer as fields of their own",
        )
    return question, (), value
