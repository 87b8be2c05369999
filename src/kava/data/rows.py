"""Raw rows: JSON lines with line numbers, tables, and checked access to fields."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from kava import answers
from kava.characters import check_characters
from kava.errors import DataError, first_line

Row = Mapping[str, Any]
Rows = Iterable[tuple[str, Row]]  # can be iterated repeatedly; the text names a row's position
# (question, steps, answer), from (row, its position, cot_type)
Parts = tuple[str, tuple[str, ...], str]

MOST_DIGITS = 400  # of a number that is an answer
ANNOTATION = re.compile(r"<<.*?>>")  # an equation in a worked solution
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|etc|approx|No|a\.m|p\.m|e\.g|i\.e)\.$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9$\"'(])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class JsonRows:
    """A .jsonl file line by line, or a .json file that holds one list of objects."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        try:
            yield from self._lines() if self.path.suffix != ".json" else self._list()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _lines(self) -> Iterator[tuple[str, Row]]:
        # bytes, because only "\n" ends a line of JSON; text mode would also split at a lone "\r"
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{self.path} line {number}"
                    yield where, _object(_json(line.rstrip(b"\r\n"), where), where)

    def _list(self) -> Iterator[tuple[str, Row]]:
        rows = _json(self.path.read_bytes(), str(self.path))
        if not isinstance(rows, list):
            raise DataError(f"{self.path} holds a {type(rows).__name__}, not a list of objects")
        for number, row in enumerate(rows, 1):
            where = f"{self.path} item {number}"
            yield where, _object(row, where)


class TableRows:
    """Rows as Python objects: a list of dicts, or a split of `datasets`; `name` is what errors call them."""

    def __init__(self, rows: Any, name: str):
        once = hasattr(rows, "__next__")  # a generator: the rows are read more than once
        if once or not hasattr(rows, "__iter__") or isinstance(rows, (str, bytes, Mapping)):
            raise DataError(
                f"{name} is a {type(rows).__name__}, not a list of rows", 'give [{"question": ..., "answer": ...}, ...]'
            )
        self.rows, self.name = rows, name

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(self.rows, 1):
            where = f"{self.name} row {number}"
            yield where, _object(row, where)


def present(row: Row, names: Sequence[str], where: str) -> str:
    """The first of `names` that the row has."""
    for name in names:
        if row.get(name) is not None:
            return name
    alternatives = " or ".join(repr(name) for name in names)
    raise DataError(
        f"{where}: field {alternatives} is missing", f"the row has: {', '.join(map(str, row)) or 'nothing'}"
    )


def text(row: Row, names: Sequence[str], where: str) -> str:
    """A non-empty text field, stripped."""
    name = present(row, names, where)
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is a {type(value).__name__}, not text")
    check_characters(value, f"{where}: field {name!r}")
    value = value.strip()
    if not value:
        raise DataError(f"{where}: field {name!r} is empty")
    for other in names:
        if other != name and isinstance(again := row.get(other), str) and again.strip() != value:
            _refuse_both(name, other, where)
    return value


def answer(row: Row, names: Sequence[str], where: str) -> str:
    """The final answer as text: numbers are written out (51.0 -> "51"), commas in numbers removed."""
    name = present(row, names, where)
    value = _answer(row, name, where)
    for other in names:
        if other != name and row.get(other) is not None and not _same_answer(value, _answer(row, other, where)):
            _refuse_both(name, other, where)
    return value


def _answer(row: Row, name: str, where: str) -> str:
    value, field = row[name], f"{where}: field {name!r}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{field} is a {type(value).__name__}, neither text nor a number")
    if isinstance(value, str):
        value = plain_number(text(row, (name,), where))
        if len(value) > MOST_DIGITS and not value.strip("0123456789+-., "):
            raise DataError(f"{field} is a number of {len(value)} digits", f"no answer has more than {MOST_DIGITS}")
        return value
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(f"{field} is {value}, not a finite number")
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise DataError(f"{field} is a number of more than {MOST_DIGITS} digits", "look at the row")
    return number_text(value)


def _same_answer(value: str, other: str) -> bool:
    """Whether two fields say the same: the same text behind "####", or the same number."""
    left, right = (text.rpartition("####")[2].strip() for text in (value, other))
    return left == right or answers.equal(answers.flexible(left), answers.flexible(right))


def _refuse_both(name: str, other: str, where: str) -> None:
    raise DataError(f"{where}: fields {name!r} and {other!r} mean the same and differ", "keep the right one of them")


def number_text(value: float) -> str:
    """A number without exponent and without a needless ".0"."""
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    digits = repr(float(value))
    return format(Decimal(digits), "f") if "e" in digits else digits


def plain_number(value: str) -> str:
    """ "1,234" -> "1234"; a whole number written "51.0" -> "51"; other text unchanged."""
    value = _THOUSANDS.sub("", value.strip())
    return value[: value.index(".")] if re.fullmatch(r"-?\d+\.0+", value) else value


def sentences(value: str) -> tuple[str, ...]:
    """Lines if there are several, otherwise sentences; the full stop of Mr., Dr., .. does not end one."""
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if len(lines) > 1:
        return tuple(lines)
    parts: list[str] = []
    for part in _SENTENCE_END.split(value.strip()):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        elif part:
            parts.append(part)
    return tuple(parts)


def equations(value: str) -> tuple[str, ...]:
    """Equation steps written as one string: the <<..>> parts, or the parts between ";" and line ends."""
    return tuple(ANNOTATION.findall(value)) or tuple(part.strip() for part in re.split(r"[;\n]", value) if part.strip())


def step_list(row: Row, name: str, where: str, cot_type: str) -> tuple[str, ...]:
    """The steps: a list of texts, or one text that is split. Blank steps are dropped; an empty list is valid."""
    value = row[name]
    if isinstance(value, str):
        check_characters(value, f"{where}: field {name!r}")
        return equations(value) if cot_type == "equation" else sentences(value)
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where}: field {name!r} is a {type(value).__name__}, neither a list of texts nor text")
    for i, step in enumerate(value):
        if not isinstance(step, str):
            raise DataError(f"{where}: field '{name}[{i}]' is a {type(step).__name__}, not text")
        if not step.isascii() or "\0" in step:
            check_characters(step, f"{where}: field '{name}[{i}]'")
    return tuple(step.strip() for step in value if step.strip())


def _json(raw: bytes, where: str) -> Any:
    try:
        return _DECODER.decode(raw.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{where} has brackets within brackets, too deep to read", "look at the row") from error
    except _TwiceError as error:
        raise DataError(f"{where}: field {str(error)!r} stands in it twice", "keep the right one of them") from error
    except json.JSONDecodeError as error:
        position = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{where} is not valid JSON: {error.msg.removesuffix(' at')} at {position}", "one JSON object per line"
        ) from error
    except ValueError as error:  # Python's own limit of digits
        raise DataError(f"{where} has a number of too many digits ({first_line(error)})", "look at the row") from error


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} holds a {type(row).__name__}, not a JSON object", 'write {"question": ..., ...}')
    return row
