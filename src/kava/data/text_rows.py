"""Rows of GSM8k-AUG's own text files, one a line:

    question||<<600*30/100=180>> <<600*10/100=60>> #### 360

What stands between "||" and "####" are the steps: equations, or sentences; nothing there is no chain of thought.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from kava.data.rows import Row
from kava.errors import DataError

BETWEEN, BEFORE_ANSWER = "||", "####"
FORM = "a line is question||steps #### answer"


class TextRows:
    """A .txt file line by line, each as a row with question, steps (one text) and answer."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        where = f"{self.path} line {number}"
                        yield where, _row(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error


def _row(line: bytes, where: str) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    question, between, rest = text.partition(BETWEEN)
    steps, before, answer = rest.rpartition(BEFORE_ANSWER)
    if not between or not before:
        raise DataError(f"{where} has no {BEFORE_ANSWER if between else BETWEEN!r}", FORM)
    if BETWEEN in rest:
        raise DataError(f"{where} has {BETWEEN!r} twice", FORM)
    return {"question": question, "steps": steps, "answer": answer}
