"""What a component of `kava smoke` is given: a function (SelfCheckContext) -> text that raises when something is wrong.

No torch here: the self-check also reports on an installation whose torch does not work.
"""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import RunError


@dataclass(frozen=True)
class SelfCheckContext:
    """A temporary folder, a device by name, and `main`, which runs a command line and returns its exit code."""

    folder: Path
    device: str
    main: Callable[[Sequence[str]], int]

    @property
    def device_setting(self) -> str:
        """The device as a recipe setting, for verbs that read a recipe."""
        return f"system.device={self.device.partition(':')[0]}"

    def run_verb(self, *words: object, exit_codes: Sequence[int] = (0,)) -> Any:
        """The JSON document that `kava WORDS --quiet` prints; a RunError unless it ends with one of `exit_codes`."""
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = self.main([*map(str, words), "--quiet"])
        if code >= 128:  # the verb ended at Ctrl-C or a signal, and so does the self-check
            raise KeyboardInterrupt
        if code not in exit_codes:
            output = errors.getvalue() or out.getvalue()
            raise RunError(f"kava {words[0]}: exit code {code}, {output[:500]}")
        return json.loads(out.getvalue())


Component = Callable[[SelfCheckContext], str]


def by_name(*checks: Component) -> dict[str, Component]:
    """Each component under the name of its function, without check_."""
    return {check.__name__.removeprefix("check_"): check for check in checks}


class Skipped(Exception):
    """A component needs an optional package that is not installed."""


def expect(condition: bool, message: str) -> None:
    """Raises an AssertionError with `message` unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def closeness(gap: float) -> str:
    """A largest difference in words."""
    return f"to {gap:.0e}" if gap else "bit for bit"
