"""KaVa: latent reasoning by distilling a teacher's compressed key/value cache (arXiv 2510.02312)."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Student", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Student":  # late: torch and transformers take seconds to import
        from kava.infer.student import Student

        return Student
    raise AttributeError(f"module 'kava' has no attribute {name!r}")
