"""Ctrl-C and a scheduler's signals become a flag that training reads between two updates."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from kava.training.processes import is_main_process, largest, together

PARENT = "KAVA_PARENT"  # the process that started this run, where its end is to end the run as well
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupt:
    """As a context manager it catches the signals; `signal` is the first that came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed: int | None = None
        self._before: dict[int, Any] = {}
        self._parent = None if "RANK" in os.environ else os.environ.get(PARENT)

    @property
    def signal(self) -> int | None:
        """The first signal that came; of several processes, what they have agreed on when they last looked."""
        return self._agreed if together() else self._agreed or self._came()

    def look(self) -> bool:
        """Has a signal come? Several processes ask at the same moment and get the same answer."""
        self._agreed = self._agreed or largest(self._came() or 0) or None
        return self._agreed is not None

    def _came(self) -> int | None:
        """Where PARENT is set, that it vanished counts as SIGTERM."""
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
        if is_main_process():
            name = signal.Signals(number).name
            what = "saving a checkpoint after this update, then stopping (Ctrl-C again stops at once)"
            print(f"\n{name}: {what}", flush=True)

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal as shells have it."""
        return 0 if self.signal is None else 128 + self.signal
