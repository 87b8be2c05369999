"""The generate.py that a model's folder may have, as exported students do: kava answers by itself and never runs it.

transformers makes it the model's `generate` on loading: 4.57 for every local folder, 5 with trust_remote_code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from transformers import GenerationMixin

_LOADING: ContextVar[bool] = ContextVar("kava loads a model", default=False)


@contextmanager
def never_run() -> Iterator[None]:
    """Inside it a model is loaded as if its folder had no generate.py. Other threads load as ever."""
    if not hasattr(GenerationMixin.load_custom_generate, "__wrapped__"):
        _wrap(GenerationMixin)
    token = _LOADING.set(True)
    try:
        yield
    finally:
        _LOADING.reset(token)


def _wrap(mixin: Any) -> None:
    """Asks `_LOADING` before the folder's code is looked for: nothing that from_pretrained takes leaves that out."""
    load = mixin.load_custom_generate

    @wraps(load)
    def load_custom_generate(self: Any, *arguments: Any, **options: Any) -> Any:
        if _LOADING.get():
            raise OSError("there is no custom generate function")  # what from_pretrained expects, and goes on
        return load(self, *arguments, **options)

    mixin.load_custom_generate = load_custom_generate
