"""Code revision, package versions and machine, as meta.json and results files record them. Level 0: no torch."""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import kava

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "datasets")


def versions() -> dict[str, str | None]:
    """Versions of kava, Python and the libraries that can change a number; null if not installed."""
    return {
        "kava": kava.__version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def surroundings() -> dict[str, Any]:
    """Versions, machine, git revision and command line of this process."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "git": revision(),
        "command": [_program(), *sys.argv[1:]],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _program() -> str:
    """`kava` for every way to start it, else the script's name without its folder."""
    name = Path(sys.argv[0]).stem
    return "kava" if name in ("__main__", "main", "kava") else name


def revision() -> str | None:
    """The git revision of the source tree, with "+changes" if files are modified; None outside a checkout."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def version_of(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
