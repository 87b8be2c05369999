"""Line editing and history for the conversation, where Python has readline (Linux, macOS; Windows' console has its own).

The history is in $KAVA_HISTORY, else $XDG_STATE_HOME/kava/history, else ~/.local/state/kava/history; KAVA_HISTORY= keeps
none. Only its owner can read it.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.files import make_folder, open_append, write_bytes

LONGEST = 1000  # questions that are kept
# What an arrow key or another key sends where nothing interprets it, such as ESC [ A, and other control characters.
_KEYS = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[A-Z])|[\x00-\x08\x0b-\x1f\x7f]")


def typed(line: str) -> str:
    """The line without what keys such as arrows leave in it."""
    return _KEYS.sub("", line).strip()


def history_file() -> Path | None:
    """Where the history is kept; None where it is not wanted or there is no home."""
    if (named := os.environ.get("KAVA_HISTORY")) is not None:
        return Path(named).expanduser() if named else None
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "kava" / "history"
    try:
        return Path.home() / ".local" / "state" / "kava" / "history"
    except RuntimeError:
        return None


@contextmanager
def line_editing(write: Callable[[str], object]) -> Iterator[None]:
    """Arrow keys edit the line and go through earlier ones while the block runs; `write` gets a note if none are kept."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = history_file()
    try:
        _read(readline, path)
    except OSError as error:
        write(f"note: earlier questions cannot be read: {path}: {error.strerror}")
    try:
        yield
    finally:
        try:
            _save(readline, path)
        except OSError as error:
            write(f"note: the questions are not kept: {path}: {error.strerror}")


def _read(readline: Any, path: Path | None) -> None:
    readline.clear_history()
    if path is not None and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-LONGEST:]:
            readline.add_history(line)


def _save(readline: Any, path: Path | None) -> None:
    """Writes the last lines to a file that only its owner can read."""
    lines = [readline.get_history_item(number) for number in range(1, readline.get_current_history_length() + 1)]
    if path is None or not lines:
        return
    if not path.exists():
        make_folder(path.parent)
        open_append(path).close()
        os.chmod(path, 0o600)
    text = "".join(f"{line}\n" for line in lines[-LONGEST:] if line)
    write_bytes(path, text.encode("utf-8", errors="replace"))
