"""What a component of `kava smoke` is: a function (Place) -> text that raises when something is wrong. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a smoke test runs: a folder of its own, and a device by name."""

    folder: Path
    device: str


class Skipped(Exception):
    """A component needs something that is not installed and need not be."""


def expect(holds: bool, otherwise: str) -> None:
    """Raises with the words `otherwise` unless it holds."""
    if not holds:
        raise AssertionError(otherwise)


def nearness(gap: float) -> str:
    return f"to {gap:.0e}" if gap else "bit for bit"
