"""Reads files that were written earlier - JSON, YAML, JSON lines - and checks them against a type.

The type is a class of pydantic or any annotation (`dict[str, float]`). Keys that the type does not name are those of other
versions: they are kept. Whatever is wrong is one error that names file, line and key.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kava.config.text import parse_text, read_text
from kava.errors import ConfigError, DataError, KavaError

T = TypeVar("T")
_NEEDED = {
    "int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "list": "a list",
    "dict": "a mapping", "model": "a mapping", "mapping": "a mapping", "finite_number": "a finite number",
    "none_required": "null",
}  # fmt: skip
_KINDS = (
    (bool, "true or false"),
    (str, "text"),
    (int | float, "a number"),
    (Mapping, "a mapping"),
    (Sequence, "a list"),
)


class Record(BaseModel):
    """What a file holds: keys that are not fields are kept, values are never converted."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def read_record(path: Path, kind: type[T], hint: str = "", raises: type[KavaError] = DataError) -> T:
    """What the file holds: JSON for the suffix .json, else YAML."""
    return checked(_parsed(path, hint, raises), kind, str(path), hint, raises)


def read_dict(path: Path, kind: Any, hint: str = "", raises: type[KavaError] = DataError) -> dict[str, Any]:
    """The same as plain data."""
    data = _parsed(path, hint, raises)
    checked(data, kind, str(path), hint, raises)
    return cast(dict[str, Any], data)


def read_dicts(path: Path, kind: Any, hint: str = "", raises: type[KavaError] = DataError) -> list[dict[str, Any]]:
    """A mapping for each line of a file of JSON lines; a last line without an end is still being written and left out."""
    lines = _text(path, hint, raises).split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            rows.append(parse_text(line, where, as_json=True))
        except ConfigError as error:
            raise raises(error.message, error.hint or hint or None) from error
        checked(rows[-1], kind, where, hint, raises)
    return rows


def _parsed(path: Path, hint: str, raises: type[KavaError]) -> Any:
    text = _text(path, hint, raises)
    try:
        return parse_text(text, str(path), as_json=path.suffix.lower() == ".json")
    except ConfigError as error:
        raise raises(error.message, error.hint or hint or None) from error


def _text(path: Path, hint: str, raises: type[KavaError]) -> str:
    try:
        return read_text(path, str(path), hint)
    except ConfigError as error:
        raise raises(error.message, error.hint or hint or None) from error


def checked(data: Any, kind: type[T], label: str, hint: str = "", raises: type[KavaError] = DataError) -> T:
    """The data as `kind`; `label` says in errors where it came from."""
    try:
        return _adapter(cast(Any, kind)).validate_python(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=True)[0]
    raise raises(f"{label}: {_problem(first, _key(first, data))}", hint or None)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _key(error: Any, data: Any) -> str:
    """The place of an error in the data; pydantic's location also names alternatives of a type."""
    key, node = "", data
    for part in error["loc"]:
        if isinstance(node, list) and isinstance(part, int):
            key, node = f"{key}[{part}]", node[part]
        elif isinstance(node, Mapping) and (part in node or error["type"] == "missing"):
            key, node = f"{key}.{part}", node.get(part)
    return key.lstrip(".")


def _problem(error: Any, key: str) -> str:
    """What is wrong with which value, in a user's words."""
    what, value = error["type"], error["input"]
    if what == "missing":
        return f"{key} is missing"
    name = what.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if name in _NEEDED:
        words = f"{_shown(value) if key else 'this is ' + _kind(value)}, {_NEEDED[name]} is needed"
    else:
        reason = str(error.get("ctx", {}).get("error", error["msg"]))
        words = f"{_shown(value)}: {reason[:1].lower()}{reason[1:]}"
    return f"{key}: {words}" if key else words


def _kind(value: Any) -> str:
    return (
        "null" if value is None else next((name for kind, name in _KINDS if isinstance(value, kind)), "something else")
    )


def _shown(value: Any) -> str:
    """The value and its kind; of a long or nested one only the kind."""
    if value is None:
        return "null"
    text = ascii(value)
    return f"{text} is {_kind(value)}" if not isinstance(value, Mapping | list) and len(text) <= 40 else _kind(value)
