"""Ctrl-C and a scheduler's signals become a flag that training reads between two updates."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupt:
    """As a context manager it catches the signals; `signal` is the first that came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: saving a checkpoint after this update, then stopping (Ctrl-C again stops at once)", flush=True
        )

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal as shells have it."""
        return 0 if self.signal is None else 128 + self.signal
