"""What a long piece of work does, how far it is and how long it still takes: the one way to show progress.

    with progress("validation", total=500, unit="questions") as meter:
        ...
        meter.advance(len(batch))
    for row in track(rows, "read train", unit="rows"):
        ...

On stderr, of the first process only. A terminal or a notebook has one line that is redrawn; a file or a pipe gets a line
after two seconds and then every half minute. Of nested meters the innermost is shown. `silent()` shows none.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from logging import Handler, LogRecord
from typing import TextIO, TypeVar

from kava import console

TICK = 0.25  # seconds between looks at the clock
LIVE_AFTER = 0.5  # seconds before a line that is redrawn appears
LINE_AFTER, LINE_EVERY = 2.0, 30.0  # seconds, where every line stays
NARROWEST = 60  # below this many columns no rate is shown
Item = TypeVar("Item")


class Meter:
    """How far one piece of work is. `note` stands behind the count."""

    def __init__(self, what: str, total: int | None, unit: str, now: float, done: int = 0):
        self.what, self.total, self.unit, self.began = what, total, unit, now
        self.done = self.before = done
        self.note = ""
        self.announced = False

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count

    def line(self, now: float) -> str:
        """For a file: `validation: 120 of 500 questions, 0:12, about 0:38 left`."""
        parts = [self.what]
        if self.total is not None or self.done:
            of = "" if self.total is None else f" of {self.total}"
            parts[0] += f": {self.done}{of} {self.unit}".rstrip()
        parts.append(clock_time(now - self.began))
        if (left := self.left(now)) is not None:
            parts.append(f"about {clock_time(left)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def bar(self, now: float, columns: int) -> str:
        """For a terminal, in so many columns."""
        from tqdm import tqdm

        if self.total is None:
            return self.line(now)[:columns]
        rate = ", {rate_fmt}" if columns >= NARROWEST else ""
        form = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{rate}{{postfix}}]"
        return tqdm.format_meter(
            self.done, self.total, now - self.began, ncols=columns, prefix=self.what, ascii=True, unit=f" {self.unit}",
            bar_format=form, postfix=self.note, initial=self.before,
        )[:columns]  # fmt: skip

    def left(self, now: float) -> float | None:
        """Seconds to go at the mean speed so far; None where that is unknown."""
        made = self.done - self.before
        if self.total is None or made <= 0:
            return None
        return max(0.0, (self.total - self.done) * (now - self.began) / made)


class Screen:
    """Shows the innermost of the open meters; `stream` and `clock` are given by tests."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream, self.clock = stream, clock
        self._held = self.now_stream  # where the open meters are shown, also while stderr is redirected
        self.visible, self.open = True, list[Meter]()
        self.begun = set[str]()  # what was announced at once
        self.drawn = ""  # the line that is redrawn
        self.last_line = clock()
        self.lock = threading.RLock()  # the ticker and the work both write
        self.stop: threading.Event | None = None

    @property
    def now_stream(self) -> TextIO:
        return self._stream or sys.stderr

    @property
    def stream(self) -> TextIO:
        """Where the meters are shown."""
        return self._held if self.open else self.now_stream

    @property
    def live(self) -> bool:
        """Whether a line can be redrawn."""
        return console.is_terminal(self.stream) or console.is_notebook(self.stream)

    def begin(self, meter: Meter, at_once: bool) -> None:
        with self.lock:
            if not self.open:
                self._held = self.now_stream
            self.open.append(meter)
            if at_once and meter.what not in self.begun:  # the same work is announced once, also in parts
                self.begun.add(meter.what)
                self._show(meter, f"{meter.what} ...")
            if self.stop is None:
                self.stop = threading.Event()
                threading.Thread(target=self._tick_until, args=(self.stop,), daemon=True, name="kava progress").start()

    def end(self, meter: Meter) -> None:
        with self.lock:
            self.open.remove(meter)
            self._clear()
            if not self.open and self.stop is not None:
                self.stop.set()
                self.stop = None

    def _tick_until(self, stop: threading.Event) -> None:
        while not stop.wait(TICK):
            self.tick()

    def tick(self) -> None:
        """Draws the innermost meter, or writes a line for it where it is time for one."""
        with self.lock:
            if not self.open:
                return
            meter, now = self.open[-1], self.clock()
            if self.live:
                if now - meter.began >= LIVE_AFTER:
                    self._show(meter, meter.bar(now, min(console.width(self.stream), console.WIDTH) - 1))
                return
            pause = LINE_EVERY if meter.announced else LINE_AFTER
            if min(now - self.last_line, now - meter.began) >= pause:
                self._show(meter, meter.line(now))

    def _show(self, meter: Meter, text: str) -> None:
        meter.announced = True
        if self.live:
            if text != self.drawn:
                self._write("\r" + text.ljust(len(self.drawn)))
            self.drawn = text
        else:
            self._write(text + "\n")
            self.last_line = self.clock()

    def _clear(self) -> None:
        if self.drawn:
            self._write("\r" + " " * len(self.drawn) + "\r")
            self.drawn = ""

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # a closed pipe or stream ends the display, not the work
            self.visible = False

    def say(self, text: str) -> None:
        """Writes whole lines, above the line that is redrawn."""
        with self.lock:
            if self.now_stream is not self.stream:
                print(text, file=self.now_stream, flush=True)
                return
            self._clear()
            self._write(text + "\n")
            self.last_line = self.clock()


screen = Screen()
say = screen.say
if hasattr(os, "register_at_fork"):  # a loader worker must not inherit a lock that the ticker holds
    os.register_at_fork(
        before=lambda: screen.lock.acquire(), after_in_parent=lambda: screen.lock.release(),
        after_in_child=lambda: screen.lock.release(),
    )  # fmt: skip


@contextmanager
def progress(
    what: str, total: int | None = None, unit: str = "", show: bool = True, at_once: bool = False, done: int = 0
) -> Iterator[Meter]:
    """A meter that is shown while the block runs.

    total    None: only the time is shown
    at_once  the line appears before the work begins, which may block the ticker: imports do
    done     what was done before, in a run that is resumed
    """
    meter = Meter(what, total, unit, screen.clock(), done)
    if not (show and screen.visible and os.environ.get("RANK", "0") == "0"):
        yield meter
        return
    screen.begin(meter, at_once)
    try:
        yield meter
    finally:
        screen.end(meter)


def track(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = "rows", show: bool = True
) -> Iterator[Item]:
    """The items, counted while they are used."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total, unit, show) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """No meter is shown inside the block; with False nothing changes."""
    before = screen.visible
    screen.visible = before and not quiet
    try:
        yield
    finally:
        screen.visible = before


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the first import of torch and transformers, which takes seconds.

    Nothing looks for garbage meanwhile, or later among what was loaded: a million objects that stay. Looking through them
    again and again is a quarter of the time, and every training asks for full collections.
    """
    first = "torch" not in sys.modules
    with progress("loading PyTorch and transformers", at_once=first):
        waits = first and gc.isenabled()
        if waits:
            gc.disable()
        try:
            yield
        finally:
            if waits:
                gc.freeze()
                gc.enable()


class LogLines(Handler):
    """Log records as lines on stderr, above the line that is redrawn."""

    def emit(self, record: LogRecord) -> None:
        text = console.visible(self.format(record))
        if record.levelname == "WARNING":
            text = f"{console.paint('warning:', 'yellow', screen.stream)} {text}"
        screen.say(console.fitted(text, screen.stream))


def clock_time(seconds: float) -> str:
    """4:07, or 1:04:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
