"""KaVa: latent reasoning by distilling a teacher's compressed key/value cache (arXiv 2510.02312)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
LATE = {  # name -> its module, imported when first asked for: torch and transformers take seconds
    "Student": "kava.infer.student",
    "create_kv_extractor": "kava.backbone.extractor",
    "KVDimensionProjector": "kava.align.projector",
    "create_environment_adapter": "kava.machine.adapter",
}
__all__ = ["KVDimensionProjector", "Student", "__version__", "create_environment_adapter", "create_kv_extractor"]


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(importlib.import_module(LATE[name]), name)
    raise AttributeError(f"module 'kava' has no attribute {name!r}")
