"""What the libraries raise for a model's files that are missing, torn, of another kind, or of values that make no model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import error as StructError

import huggingface_hub.errors
from safetensors import SafetensorError

from kava.errors import first_line

STRICT: type[Exception] = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)  # newer versions
UNREADABLE = (
    OSError, ValueError, LookupError, ArithmeticError, AssertionError, TypeError, AttributeError, ImportError,
    SafetensorError, STRICT, StructError,
)  # fmt: skip


@contextmanager
def naming_files(source: str | Path) -> Iterator[None]:
    """A ValueError with the file's name for what a library raises without a class of its own, or for nested brackets."""
    try:
        yield
    except RecursionError as error:
        if (name := _nested_too_deeply(Path(source))) is None:
            raise
        raise ValueError(f"{name} is nested too deeply") from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises this very class, and nothing else does
            raise
        raise ValueError(f"tokenizer.json is damaged: {first_line(error)}") from error


def _nested_too_deeply(folder: Path) -> str | None:
    """The file of a model's folder that has more brackets within brackets than Python reads; None without one."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except RecursionError:
            return path.name
        except ValueError:  # torn otherwise: another message is about it
            continue
    return None


def reason(error: BaseException) -> str:
    """What is wrong, where the error's class only says that something is, or its text is no more than a key."""
    if isinstance(error, KeyError):
        return f"there is no key {first_line(error)}"
    return first_line(error.__cause__ if isinstance(error, STRICT) and error.__cause__ else error)
