"""Numbers of flags: none beyond the largest size, count or seed that anything below Python takes."""

from typing import Any

from kava.config.fields import LARGEST
from kava.errors import ConfigError


def bound(parameter: Any) -> None:
    """Makes a verb's flag refuse numbers beyond `LARGEST`, and what is no number (nan, inf)."""
    process = parameter.process_value

    def processed(ctx: Any, value: Any) -> Any:
        value = process(ctx, value)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not abs(number) <= LARGEST:
                raise ConfigError(f"{parameter.opts[0]} {number}: numbers go up to {LARGEST}")
        return value

    parameter.process_value = processed
