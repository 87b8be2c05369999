"""Writing so that a kill, a full disk or a second reader never sees half a file. Level 0: no torch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"


def write_text(path: str | Path, text: str) -> None:
    """Writes beside the target, then renames over it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
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
    """Gives a folder to fill; it takes the place of `path` when the block ends well, and vanishes when it does not."""
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
    """Renames `source` to `target`; an old `target` is moved aside first and deleted last."""
    old = target.parent / f"{PARTIAL}old-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Removes what a killed process left half written in `folder`, and puts back a folder it had moved aside."""
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
    """Gives a file that was made private (by tempfile, by safetensors) the rights that any new file has."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
