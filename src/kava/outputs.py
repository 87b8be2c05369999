"""Checks, before any work, that what a command will write has a place, and replaces nothing of the user's. Level 0.

check_outputs   all files that a command will write: writable, each one its own, no input, not another's file
check_folder    a folder that a command will fill
problem_of      why nothing can be written to a path, in words
"""

import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kava.errors import ConfigError, RunError
from kava.files import is_stream, open_descriptor

ELSEWHERE = "choose another place"
IsOurs = Callable[[Path], bool]


@dataclass(frozen=True)
class Output:
    """A file that a command will write. `flag` names it in messages; `is_ours` tells files of this kind that kava wrote,
    which may be replaced; None: the name is kava's own, as those in a run's folder are. `is_folder`: a folder to fill."""

    flag: str
    path: Path
    is_ours: IsOurs | None = None
    is_folder: bool = False


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises for an output that cannot be written, is an input or another output, or is a file that kava did not write."""
    read = [path for path in inputs if os.path.isfile(path)]
    for place, output in enumerate(outputs):
        name = f"{output.flag} {output.path}"
        if problem := problem_of(output.path, output.is_folder):
            raise RunError(f"{name} cannot be written: {problem}", ELSEWHERE)
        if not _is_replaced(output):
            continue
        if source := next((path for path in read if _same(path, output.path)), None):
            raise ConfigError(f"{name} is an input: {source}", "name another file")
        if other := next((other for other in outputs[:place] if _clash(other, output)), None):
            twice = f"two {output.flag}" if output.flag == other.flag else f"{other.flag} and {output.flag}"
            raise ConfigError(f"{twice} would be written to {output.path}", "give each a place of its own")
        if not overwrite and output.is_ours is not None and not _may_replace(output.path, output.is_ours):
            raise ConfigError(
                f"{name} exists, and kava did not write it, or it was changed since",
                "name another file, or add --overwrite to replace it",
            )


def check_folder(flag: str, path: str | Path) -> None:
    """Raises where the folder `path` cannot be made, or nothing can be written into it. Makes nothing."""
    if problem := problem_of(path, is_folder=True):
        raise RunError(f"{flag} {path} cannot be written: {problem}", ELSEWHERE)


def as_path(name: str, path: str | Path | None) -> Path | None:
    """A path that was given as text; "" would be the working folder, which nobody means."""
    if path == "":
        raise ConfigError(f"{name} is empty", "name a file or folder, or leave it out")
    return None if path is None else Path(path)


def problem_of(path: str | Path, is_folder: bool = False) -> str | None:
    """Why no file (or folder) can be written at `path`, in words; None where it can. Nothing is made or changed."""
    path = Path(path)
    try:
        if open_descriptor(path) is not None:
            return "it is an open file, not a folder" if is_folder else None
        if os.path.exists(path):
            return _problem_of_existing(path, is_folder)
        return _problem_of_new(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError as error:  # a NUL in the name
        return str(error)


def _problem_of_existing(path: Path, is_folder: bool) -> str | None:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return _problem_inside(path) if is_folder else "it is a folder"
    if is_folder:
        return "it is a file, not a folder"
    if not os.access(path, os.W_OK):
        return "it is read-only"
    return _problem_inside(Path(os.path.realpath(path)).parent) if stat.S_ISREG(mode) else None


def _problem_of_new(path: Path) -> str | None:
    """Looks at the nearest existing place above, and at the length of every name below it."""
    below: list[str] = []
    place = Path(os.path.abspath(path))
    while not os.path.lexists(place):
        if place.parent == place:
            return f"there is no drive {place}"
        below.append(place.name)
        place = place.parent
    what = "it" if not below else str(place)
    if os.path.islink(place) and not os.path.exists(place):
        return f"{what} is a symlink to {os.readlink(place)}, which does not exist"
    if not place.is_dir():
        return f"{what} is a file, not a folder"
    for name in below:
        try:
            os.lstat(place / name)  # a name that is too long, or has characters that the system refuses
        except FileNotFoundError:
            continue
    return _problem_inside(place)


def _problem_inside(folder: Path) -> str | None:
    """Why nothing can be made in a folder. Root may do everything, so a file without a name is really opened."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be made in {folder} (permission denied)"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be made in {folder} ({(error.strerror or str(error)).lower()})"


def _is_replaced(output: Output) -> bool:
    """Whether writing replaces something or makes it; False for a device, a pipe and an open file."""
    return not is_stream(output.path)


def _clash(first: Output, second: Output) -> bool:
    """Whether two outputs are the same, or one is a file where the other needs a folder."""
    if not _is_replaced(first):
        return False
    left, right = (Path(os.path.realpath(output.path)) for output in (first, second))
    above = (left in right.parents and not first.is_folder) or (right in left.parents and not second.is_folder)
    return above or _same(first.path, second.path)


def _same(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))


# -- files that kava wrote ---------------------------------------------------------------------------------------------


def _may_replace(path: Path, is_ours: IsOurs) -> bool:
    """True for no file, an empty one, and one of ours; one that cannot be read or parsed is not ours."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    try:
        return is_ours(path)
    except (OSError, ValueError, ConfigError):
        return False


def begins(*heads: str) -> IsOurs:
    """Text files that begin with one of these."""

    def is_ours(path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            return file.read(max(map(len, heads))).startswith(heads)

    return is_ours


def is_dated(path: Path) -> bool:
    """Whether a log begins with a date, as the lines of train.log do."""
    with path.open(encoding="utf-8") as file:
        return re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", file.readline()) is not None


def has_keys(*keys: str, below_root: bool = False) -> IsOurs:
    """JSON or YAML files of a mapping with these keys; `below_root`: in the value of its only key."""

    from kava.config.text import parse_text  # needs yaml, which `kava task` must not load for its status file

    def is_ours(path: Path) -> bool:
        content = parse_text(path.read_text(encoding="utf-8"), str(path), as_json=path.suffix.lower() == ".json")
        if below_root:
            (content,) = content.values() if isinstance(content, dict) and len(content) == 1 else [None]
        return isinstance(content, dict) and all(key in content for key in keys)

    return is_ours


def rows_have(*keys: str) -> IsOurs:
    """JSON-lines files whose rows have these keys."""

    def is_ours(path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        return all(isinstance(row, dict) and all(key in row for key in keys) for row in rows)

    return is_ours
