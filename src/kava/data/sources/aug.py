"""Rows that list their steps: GSM8k-AUG, GSM8k-AUG-NL and our own files.

    {"question": "Out of 600 employees in a company, 30% ...", "steps": ["<<600*30/100=180>>", ...], "answer": "360"}

385,620 / 500 / 1,319 rows (train, validation, test; known). AUG has equations, AUG-NL sentences. `steps` as one
string is split. The answer "#### 360" is read as 360.
"""

from kava.data.fields import ANSWER, QUESTION
from kava.data.rows import Parts, Row, answer, plain_number, present, step_list, text
from kava.errors import DataError


def parse(row: Row, where: str, cot_type: str) -> Parts:
    present(row, ("steps",), where)
    value = answer(row, ANSWER, where)
    if "####" in value:
        value = plain_number(value.rpartition("####")[2])
        if not value:
            raise DataError(f"{where}: field 'answer' has nothing behind '####'")
    return text(row, QUESTION, where), step_list(row, "steps", where, cot_type), value
