"""Ctrl-C and a scheduler's signals become a flag that training reads between two updates."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

PARENT = "KAVA_PARENT"  # the process that started this run, where its end is to end the run as well
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupt:
    """As a context manager it catches the signals; `signal` is the first that came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._parent = None if "RANK" in os.environ else os.environ.get(PARENT)

    @property
    def signal(self) -> int | None:
        """The first signal that came; where PARENT is set, that it vanished counts as SIGTERM."""
        if self._signal is None and self._parent not in (None, str(os.getppid())):
            self._signal = signal.SIGTERM
        return self._signal

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: saving a checkpoint after this update, then stopping (Ctrl-C again stops at once)", flush=True
        )

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal as shells have it."""
        return 0 if self.signal is None else 128 + self.signal
