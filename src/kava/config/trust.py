"""Whether code that comes with a model or with a stored recipe may run: the caller's decision, never a file's.

A recipe asks for it with `trust_remote_code: true` beside a model's name, or with a variant written as
package.module:Name. A file only asks. What grants it is the flag --trust_remote_code, the argument trust_remote_code=True,
or the same key typed on the command line or given in Python. A package.module:Name in a recipe that the user names with
--config is the user's own; in the recipe of a student it is granted as the code of models is.

Code that nobody granted is refused where it would run as well (`check_allowed`), so that no way to it can be forgotten.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kava.config.keys import KEYS, VARIANTS, flatten
from kava.config.load import COMMAND_LINE, OVERRIDES
from kava.config.schema import Origin, Recipe
from kava.errors import CodeRefused, ConfigError
from kava.registry import say_once

FLAG = "trust_remote_code"
TEACHERS = "mixture.teachers"
CALLER = (COMMAND_LINE, OVERRIDES)
log = logging.getLogger("kava.trust")

_allowed: ContextVar[bool] = ContextVar("code_allowed", default=False)


@contextmanager
def code_allowed(allowed: bool = True) -> Iterator[None]:
    """While the block runs, models whose settings say trust_remote_code may run their code."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def allow_code() -> None:
    """The same until the command line ends (`kava.cli.main` runs each one in a context of its own)."""
    _allowed.set(True)


def check_allowed(source: str) -> None:
    """Says that the model's code may run, or raises where nobody allowed it."""
    if not _allowed.get():
        raise CodeRefused(
            f"model {source!r} is to run code of its own (trust_remote_code), which only the caller can allow",
            f"read that code, then add --{FLAG} (in Python {FLAG}=True)",
        )
    say_once(log, f"model {source!r} may run code of its own, as you allowed")


def code_refused(source: str) -> CodeRefused:
    """The error about a model that cannot be read without its code, for which nobody has asked."""
    return CodeRefused(
        f"model {source!r} comes with code of its own, which is not run unasked",
        f"read that code, then add --{FLAG} (in Python {FLAG}=True)",
    )


def requests(recipe: Recipe, stored: bool = False) -> dict[str, str]:
    """Key -> value of everything that asks for code to be run; variants written as package.module:Name if `stored`."""
    sections = (("model", recipe.model), ("teacher", recipe.teacher))
    wanted = {f"{name}.{FLAG}": "true" for name, settings in sections if settings.trust_remote_code}
    if any(teacher.trust_remote_code for teacher in recipe.mixture.teachers):
        wanted[TEACHERS] = f"[.. {FLAG}: true]"
    values = flatten(recipe.to_dict(), "recipe", None) if stored else {}
    return wanted | {key: value for key, value in values.items() if key in VARIANTS and ":" in value}


def trusted(recipe: Recipe, trust_remote_code: bool = False, stored: str | None = None) -> Recipe:
    """The recipe as its caller grants it: with `trust_remote_code` every model may run its code.

    Raises where its file asks for what was not granted. `stored` names the file of a student's or checkpoint's recipe.
    """
    if trust_remote_code:
        return _granted(recipe)
    for key, value in requests(recipe, stored is not None).items():
        origin = recipe._origins.get(key)
        if origin is not None and origin.place not in CALLER:  # without an origin it was made in Python
            raise ConfigError(
                f"{stored or origin.place}: {key} = {value} asks to run code that came with it, which a file cannot allow",
                f"read that code, then add --{FLAG} (in Python {FLAG}=True)",
            )
    return recipe


def _granted(recipe: Recipe) -> Recipe:
    yes = {FLAG: True}
    mixture = {"teachers": tuple(teacher.model_copy(update=yes) for teacher in recipe.mixture.teachers)}
    made = recipe.changed("model", **yes).changed("mixture", **mixture)
    keys = [f"model.{FLAG}", *([TEACHERS] if recipe.mixture.on else [])]
    if recipe.explicit.enabled and not recipe.mixture.on:
        made, keys = made.changed("teacher", **yes), [*keys, f"teacher.{FLAG}"]
    by_caller = {key: Origin(COMMAND_LINE, KEYS[key].tag, KEYS[key].source) for key in keys}
    made._origins = {**recipe._origins, **by_caller}
    return made
