"""Stop signals as a flag that training reads between two updates."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from kava.stop_signals import exit_code, heeded, write_stderr
from kava.training.processes import is_distributed, is_main_process, max_over_processes

PARENT = "KAVA_PARENT"  # id of the process that started this run, if the run is to stop when that process ends


def _watched_parent() -> str | None:
    """The id of the process whose end is to stop this run: PARENT, or torchrun, which dies of a SIGUSR1 and tells nobody."""
    if "RANK" in os.environ:
        return str(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else None
    return os.environ.get(PARENT)


class Interrupt:
    """Context manager that catches the stop signals; `signal` is the first that came, later ones are ignored.

    One Ctrl-C may arrive twice, from the terminal and from torchrun, so a second one is no wish to lose the work.
    SIGQUIT (Ctrl-backslash) and SIGKILL are not caught.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed: int | None = None
        self._before: dict[int, Any] = {}
        self._parent = _watched_parent()

    @property
    def signal(self) -> int | None:
        """The first signal that came; in a process group, what all agreed on in the last `look`."""
        return self._agreed if is_distributed() else self._agreed or self._came()

    def look(self) -> bool:
        """True once a signal has come to any process; all processes call it together and get the same value."""
        self._agreed = self._agreed or max_over_processes(self._came() or 0) or None
        return self._agreed is not None

    def _came(self) -> int | None:
        """The signal this process got; the end of the process that started it, where it is watched, counts as SIGTERM."""
        if self._signal is None and self._parent not in (None, str(os.getppid())):
            self._catch(signal.SIGTERM, None)
        return self._signal

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._before = {number: signal.signal(number, self._catch) for number in heeded()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            return
        self._signal = number
        if is_main_process():
            name = signal.Signals(number).name
            write_stderr(
                f"\n{name}: saving a checkpoint after this update, then stopping (SIGQUIT, Ctrl-\\, stops at once)"
            )

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal as shells have it."""
        return 0 if self.signal is None else exit_code(self.signal)
