"""The location of the hub's cache, set before any library of the hub is imported, since they read it only then."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from pathlib import Path

from kava.errors import ConfigError

HUB_CACHE = "HF_HUB_CACHE"
CACHES = (HUB_CACHE, "HF_DATASETS_CACHE")
STORES = ("HF_HOME", "TRANSFORMERS_CACHE")  # the second: the model cache of transformers 4


def take_shared_store(environ: MutableMapping[str, str]) -> None:
    """Sets HF_HUB_CACHE to the folder named by a variable of STORES, if models--ORG--NAME are directly in it.

    The hub's library searches only its sub-folder `hub`. If that exists, or HF_HUB_CACHE is set, nothing changes.
    """
    if environ.get(HUB_CACHE) or environ.get("HUGGINGFACE_HUB_CACHE"):
        return
    for name in STORES:
        folder = Path(environ.get(name, "")).expanduser()
        if environ.get(name) and not (folder / "hub").is_dir() and any(folder.glob("models--*")):
            environ[HUB_CACHE] = str(folder)
            return


def move_cache(folder: str, environ: MutableMapping[str, str]) -> None:
    """Makes `folder` the hub's cache of this process."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and str(constants.HF_HUB_CACHE) != folder:
        raise ConfigError(
            f"the hub's cache cannot be moved to {folder}: it is in use at {constants.HF_HUB_CACHE}",
            "set HF_HUB_CACHE before Python starts",
        )
    environ.update(dict.fromkeys(CACHES, folder))
