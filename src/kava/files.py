"""Atomic writing: after a kill or a full disk no reader finds half a file. Level 0: no torch."""

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.errors import RunError

MOMENT = 0.5  # seconds for which `is_owned` may hold a lock, and others wait for it
PARTIAL = ".partial-"


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a temporary file in the same folder, then renames it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        usual_mode(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder; it replaces `path` when the block succeeds and is deleted when the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL))
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`; an old `target` is renamed first and deleted last."""
    old = target.parent / f"{PARTIAL}old-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sole_owner(path: str | Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; the system frees it even if the process is killed.

    `patience`: seconds to wait for another process that holds it.
    """
    with open(path, "a", encoding="utf-8") as file:
        until = time.monotonic() + max(patience, MOMENT)
        while not _lock(file.fileno()):
            if time.monotonic() >= until:
                folder = Path(path).parent
                raise RunError(f"another process is at work in {folder}", "wait for it, or choose another folder")
            time.sleep(0.2)
        yield


def is_owned(path: str | Path) -> bool:
    """Whether a process holds the lock file `path`; False where there is none. Asks by holding it for a moment."""
    try:
        with open(path, "rb") as file:
            return not _lock(file.fileno(), shared=True)
    except (FileNotFoundError, PermissionError):
        return False


def sweep(folder: str | Path) -> None:
    """Removes partial files that a killed process left in `folder`, and restores a folder it had renamed."""
    folder = Path(folder)
    for left in folder.glob(PARTIAL + "*"):
        name = left.name.removeprefix(PARTIAL + "old-")
        if left.is_dir() and name != left.name and not (folder / name).exists():
            os.rename(left, folder / name)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def usual_mode(path: str | Path) -> None:
    """Gives a file that tempfile or safetensors made private the permissions of any new file."""
    os.chmod(path, 0o666 & ~_umask())


def _lock(handle: int, shared: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
            return True
        raise
    return True


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
