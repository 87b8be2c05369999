"""GSM8K (openai/gsm8k, config "main", MIT): 7,473 / 1,319 rows (train, test); no validation split.

    {"question": "Natalia sold clips to 48 of her friends ...",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\nNatalia sold 48+24 = <<48+24=72>>72 ...\\n#### 72"}

equation: the steps are the <<..>> annotations, kept with their brackets as in AUG.  natural_language: the lines of
the solution without annotations.  answer: the number after "####", without commas.
"""

from kava.data.rows import ANNOTATION, Parts, Row, plain_number, text
from kava.data.sources import aug
from kava.errors import DataError


def parse(row: Row, where: str, cot_type: str) -> Parts:
    if "steps" in row:  # the solution is split already
        return aug.parse(row, where, cot_type)
    steps, value = solution(text(row, ("answer",), where), where, "answer", cot_type)
    return text(row, ("question",), where), steps, value


def solution(worked: str, where: str, field: str, cot_type: str) -> tuple[tuple[str, ...], str]:
    """(steps, answer) of a worked solution that ends in "#### number"."""
    body, mark, value = worked.rpartition("####")
    value = plain_number(value)
    if not mark or not value:
        raise DataError(f"{where}: field {field!r} has no final answer", "GSM8K ends a solution with '#### number'")
    if cot_type == "equation":
        return tuple(ANNOTATION.findall(body)), value
    lines = (ANNOTATION.sub("", line).strip() for line in body.splitlines())
    return tuple(line for line in lines if line), value
