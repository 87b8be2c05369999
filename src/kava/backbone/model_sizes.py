"""Sizes in a model's config.json that no model has: found before a library builds lists and weights of that size. No torch."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from kava.config.typed_file import Record, checked
from kava.errors import ModelError

FILE = "config.json"


def _at_most(largest: int) -> AfterValidator:
    def check(value: Any) -> Any:
        if isinstance(value, int | float) and value > largest:
            raise ValueError(f"no model has more than {largest}")
        return value  # whatever is no number is the library's to refuse

    return AfterValidator(check)


Layers = Annotated[Any, _at_most(10_000)]
Size = Annotated[Any, _at_most(2**24)]
Rows = Annotated[Any, _at_most(2**30)]


class ConfigSizes(Record):
    """The sizes in the words of the supported families and of GPT-2; larger by far than any model's."""

    num_hidden_layers: Layers = None
    n_layer: Layers = None
    num_layers: Layers = None
    hidden_size: Size = None
    n_embd: Size = None
    intermediate_size: Size = None
    n_inner: Size = None
    head_dim: Size = None
    num_attention_heads: Size = None
    n_head: Size = None
    num_key_value_heads: Size = None
    vocab_size: Rows = None
    max_position_embeddings: Rows = None
    n_positions: Rows = None
    text_config: "ConfigSizes | None" = None


def check_sizes(folder: Path) -> None:
    """Raises for a size beyond any model's in the folder's config.json. What cannot be read is left to the library."""
    path = folder / FILE
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(settings, dict):
        checked(settings, ConfigSizes, str(path), "the file is torn or was edited; use another copy", ModelError)
