"""GSM-Hard (reasoning-machines/gsm-hard, Apache-2.0, the PAL authors): 1,319 rows, all of them for evaluation.

    {"input": "Janet's ducks lay 16 eggs per day. ...", "code": "\\ndef solution(): ...", "target": -9867630.0}

GSM8K's test questions with large numbers. `target` is a float; whole ones are written without ".0". No steps.
"""

from kava.data.rows import Parts, Row, answer, text


def parse(row: Row, where: str, cot_type: str) -> Parts:
    return text(row, ("input",), where), (), answer(row, ("target",), where)
