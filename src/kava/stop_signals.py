"""The signals that ask a process to stop, and how a command ends on one: one line, exit code 128 + signal."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; `hint` says how to continue."""

    def __init__(self, number: int, hint: str | None = None):
        super().__init__(signal.Signals(number).name)
        self.number, self.hint = number, hint


def exit_code(number: int) -> int:
    """128 + signal, as shells have it."""
    return 128 + number


def heeded() -> list[int]:
    """The stop signals, without a SIGHUP that is ignored: the process was started by nohup."""
    hup = getattr(signal, "SIGHUP", None)
    return [number for number in STOP_SIGNALS if number != hup or signal.getsignal(number) is not signal.SIG_IGN]


class RaiseStopped:
    """Context manager in which the first stop signal raises `Stopped`; later ones are ignored while that unwinds.

    `for_good`: they stay ignored afterwards, because the process is about to end.
    """

    def __init__(self, for_good: bool):
        self.stop: Stopped | None = None
        self._for_good = for_good
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> "RaiseStopped":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._before = {number: signal.signal(number, self._catch) for number in heeded()}
            sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._for_good else handler)
        if self._before:
            sys.unraisablehook = self._hook

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop = Stopped(number)
            raise self.stop

    def _unraisable(self, lost: Any) -> None:
        """Ends the process where `Stopped` was raised in a __del__, which swallows it."""
        if isinstance(lost.exc_value, Stopped):
            os._exit(exit_code(lost.exc_value.number))
        self._hook(lost)


@contextmanager
def continues_by(hint: str) -> Iterator[None]:
    """Gives `hint` to a stop inside: how the work goes on."""
    try:
        yield
    except Stopped as stop:
        stop.hint = stop.hint or hint
        raise


def write_stderr(line: str) -> None:
    """Writes a line to stderr, also from a signal handler. A terminal that is gone is replaced by /dev/null."""
    try:
        os.write(2, f"{line}\n".encode())  # print() must not be called while another print() is under way
    except OSError:
        for handle in (1, 2):
            with suppress(OSError):
                os.write(handle, b"")
                continue
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, handle)
            os.close(nowhere)
