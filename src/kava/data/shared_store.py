"""A cluster's shared store of models, in either of its layouts; known before any library of the hub is imported."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

HUB_CACHE = "HF_HUB_CACHE"
STORES = ("HF_HOME", "TRANSFORMERS_CACHE")  # the second: what transformers 4 kept its models in


def take_shared_store(environ: MutableMapping[str, str]) -> None:
    """Sets HF_HUB_CACHE to the folder that one of STORES names, where models--ORG--NAME lie in that folder itself.

    The hub's library looks into its sub-folder `hub` only. Where that is there, or HF_HUB_CACHE is set, nothing changes.
    """
    if environ.get(HUB_CACHE) or environ.get("HUGGINGFACE_HUB_CACHE"):
        return
    for name in STORES:
        folder = Path(environ.get(name, "")).expanduser()
        if environ.get(name) and not (folder / "hub").is_dir() and any(folder.glob("models--*")):
            environ[HUB_CACHE] = str(folder)
            return
