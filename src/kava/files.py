"""Every file and folder that kava writes is made here. After a kill or a full disk no reader finds half a file.

write_*       replace a file in one step; devices and pipes are written through, a symlink stays and its target is written
open_append   opens a log, or a file of output, at its end
make_folder   makes a folder and those above it
new_folder    fills a folder under another name and renames it when it is complete

An OSError of these functions names the user's path, never a temporary one. Level 0: no torch.
"""

import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from kava.errors import RunError

MOMENT = 0.5  # seconds for which `is_owned` may hold a lock, and others wait for it
PARTIAL = ".partial-"
MOST_LINKS = 40  # that a path may lead through, as in Linux


def looks_like_path(name: str) -> bool:
    """True for the form of a path, of POSIX or Windows; False for a word, or ORG/NAME on the hub."""
    return name.startswith((".", "/", "~")) or "\\" in name or bool(PureWindowsPath(name).drive) or name.count("/") > 1


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a temporary file beside `path` and renames it to `path`; a device, pipe or open file is written through."""
    with naming(path):
        stream = _through(path)
        if stream is not None:
            with stream:
                stream.write(content)
            return
        target = Path(_target(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        file, partial = open_partial(target, named=False)
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            replace_file(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def open_partial(path: Path, named: bool = True) -> tuple[IO[bytes], Path]:
    """A temporary file beside `path`, open, and where it is; for content that comes piece by piece.

    `named`: the temporary name tells which file it will be; not for names that may be as long as the system allows.
    """
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}-" if named else PARTIAL)
    return os.fdopen(handle, "wb"), Path(name)


def replace_file(partial: Path, path: Path) -> None:
    """Renames a complete temporary file to `path`, with the permissions of the file it replaces, or of any new file."""
    if path.exists():
        os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
    else:
        usual_mode(partial)
    os.replace(partial, path)


def write_json(path: str | Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def open_append(path: str | Path) -> IO[str]:
    """The file `path`, opened as text to write at its end; it is made where there is none."""
    with naming(path):
        return open(_target(path), "a", encoding="utf-8", newline="\n")


def make_folder(path: str | Path) -> None:
    """Makes the folder `path` and those above it; one that exists stays as it is."""
    with naming(path):
        Path(path).mkdir(parents=True, exist_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts `path` into an OSError of the block, which may name a temporary file, a descriptor or nothing."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder; it replaces `path` when the block succeeds and is deleted when the block fails."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL))
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_folder(source: Path, target: Path) -> None:
    """A copy of a folder that appears at `target` when it is complete."""
    with new_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`; an old `target` is renamed first and deleted last. Of a link only the link goes."""
    old = target.parent / f"{PARTIAL}old-{target.name}"
    remove(old)
    if os.path.lexists(target):
        os.rename(target, old)
    os.rename(source, target)
    with suppress(OSError):  # swept away by the next run
        remove(old)


def remove(path: Path) -> None:
    """Deletes a file, a folder with all it holds, or a link, but never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def sole_owner(path: str | Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; the system frees it even if the process is killed.

    `patience`: seconds to wait for another process that holds it.
    """
    with open_append(path) as file:
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
        if left.is_dir() and name != left.name and not os.path.lexists(folder / name):
            os.rename(left, folder / name)
        else:
            remove(left)


def usual_mode(path: str | Path) -> None:
    """Gives a file that tempfile or safetensors made private the permissions of any new file."""
    os.chmod(path, 0o666 & ~_umask())


def open_descriptor(path: str | Path) -> int | None:
    """The number of the open file that `path` stands for: 1 for /dev/stdout, /dev/fd/1 or a link to them."""
    place = os.path.abspath(path)
    for _ in range(MOST_LINKS):
        folder, name = os.path.split(place)
        if name.isdecimal() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}/fd", os.path.realpath(folder)):
            return int(name)
        if not os.path.islink(place):
            return None
        place = os.path.normpath(os.path.join(os.path.realpath(folder), os.readlink(place)))
    return None


def is_stream(path: str | Path) -> bool:
    """Whether `path` is a device, a pipe or an open file, which is written through and never replaced."""
    if open_descriptor(path) is not None:
        return True
    return os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path)


def _through(path: str | Path) -> IO[bytes] | None:
    """A device, pipe or open file, ready to be written; None for a regular file and for a path without a file."""
    descriptor = open_descriptor(path)
    if descriptor is not None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()  # what was printed before comes first
        return os.fdopen(os.dup(descriptor), "wb")
    return open(path, "wb") if is_stream(path) else None


def _target(path: str | Path) -> str:
    """The file behind the symlinks of `path`; a link to nothing is an error, since its folder may not be mounted."""
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, f"a symlink to {os.readlink(path)}, which does not exist", str(path))
    return os.path.realpath(path)


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
