"""Progress with a clock and a stream of the test's own: what is written, when, and that it fits the terminal."""

import gc
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from kava import console, progress
from kava.progress import Meter, Screen, clock_time, loading_libraries


class Stream(io.StringIO):
    """A terminal of so many columns, or (None) a file."""

    def __init__(self, columns: int | None = None):
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return self.columns is not None

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console, "width", lambda stream: getattr(stream, "columns", None) or 80)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(monkeypatch: pytest.MonkeyPatch, stream: Stream, clock: Clock) -> Screen:
    """The one screen, with this stream and clock and without its thread: the test calls `tick`."""
    screen = Screen(stream, clock)
    monkeypatch.setattr(screen, "_tick_until", lambda stop: None)
    monkeypatch.setattr(progress, "screen", screen)
    return screen


def test_a_file_gets_a_line_after_two_seconds_and_then_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    screen = opened(monkeypatch, stream := Stream(), clock)
    with progress.progress("validation", 500, "questions") as meter:
        for _ in range(125):
            clock.now += 1
            meter.advance(4)
            screen.tick()
    lines = stream.lines()
    assert lines[:2] == [
        "validation: 8 of 500 questions, 0:02, about 2:03 left",
        "validation: 128 of 500 questions, 0:32, about 1:33 left",
    ]
    assert len(lines) == 1 + 4
    assert all(len(line) <= 80 for line in lines)


def test_short_work_says_nothing(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for stream in (Stream(), Stream(80)):
        screen = opened(monkeypatch, stream, clock)
        for _ in range(50):
            with progress.progress("saving"):
                clock.now += 0.1
                screen.tick()
        assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_terminal_has_one_line_that_fits_and_goes_away(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, columns: int
) -> None:
    screen = opened(monkeypatch, stream := Stream(columns), clock)
    with progress.progress("train", 400, "updates", done=100) as meter:
        meter.note = "loss 2.852"
        for _ in range(20):
            clock.now += 1
            meter.advance()
            screen.tick()
    drawn = [text for text in stream.getvalue().split("\r") if text.strip()]
    assert "\n" not in stream.getvalue()
    assert all(len(text) < min(columns, 80) + 1 for text in drawn)
    assert drawn[-1].startswith("train")
    assert "120/400" in drawn[-1]
    if columns >= 60:
        assert "loss 2.852" in drawn[-1]
        assert "04:40" in drawn[-1]  # 280 updates at one a second: what was done before is not counted as speed
    assert stream.getvalue().endswith("\r")


def test_a_log_line_is_written_above_the_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, stream := Stream(80), clock)
    with progress.progress("train", 10, "updates"):
        clock.now += 5
        screen.tick()
        handler = progress.LogLines()
        handler.emit(logging.makeLogRecord({"msg": "step 1/10", "levelname": "INFO"}))
        screen.tick()
    *before, log_line = stream.getvalue().split("\n")[0].split("\r")
    assert log_line == "step 1/10"
    assert before[-1].strip() == ""  # the bar was wiped first


def test_the_innermost_is_shown(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, stream := Stream(), clock)
    with progress.progress("train", 10, "updates") as outer:
        outer.advance()
        clock.now += 3
        screen.tick()
        with progress.progress("validation", 5, "questions"):
            clock.now += 31
            screen.tick()
        clock.now += 31
        screen.tick()
    assert [line.split(":")[0] for line in stream.lines()] == ["train", "validation", "train"]


def test_the_same_work_in_parts_is_announced_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    opened(monkeypatch, stream := Stream(), clock)
    with progress.progress("loading", at_once=True), progress.progress("loading", at_once=True):
        pass
    with progress.progress("loading", at_once=True):
        pass
    assert stream.lines() == ["loading ..."]


def test_quiet_other_processes_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, stream := Stream(), clock)
    with progress.silent(), progress.progress("work", at_once=True):
        clock.now += 60
        screen.tick()
    monkeypatch.setenv("RANK", "1")
    with progress.progress("work", at_once=True):
        clock.now += 60
        screen.tick()
    assert stream.getvalue() == ""
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("TERM", "dumb")
    opened(monkeypatch, dumb := Stream(80), clock)
    with progress.progress("work", at_once=True):
        pass
    assert dumb.getvalue() == "work ...\n"


def test_redirected_while_open(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, Stream(), clock)
    screen._stream = None  # as in the program: wherever stderr is
    monkeypatch.setattr(sys, "stderr", outer := Stream())
    with progress.progress("component"):
        monkeypatch.setattr(sys, "stderr", inner := Stream())
        clock.now += 3
        screen.tick()
        screen.say("a line of the work")
    assert outer.lines() == ["component, 0:03"]
    assert inner.lines() == ["a line of the work"]


def test_items_are_counted_while_they_are_used(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, stream := Stream(), clock)

    def rows() -> Iterator[int]:
        yield from range(3)

    for _ in progress.track(rows(), "reading", unit="rows"):
        clock.now += 31
        screen.tick()
    assert stream.lines()[-1] == "reading: 2 rows, 1:33"
    assert not screen.open


def test_a_closed_stream_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = opened(monkeypatch, stream := Stream(), clock)
    stream.close()
    with progress.progress("work", at_once=True):
        clock.now += 60
        screen.tick()
    assert not screen.visible


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_inherits_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.progress("work"):
        child = os.fork()
        if child == 0:
            os._exit(0 if progress.screen.lock.acquire(timeout=5) else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("loaded", "collecting"), [(False, True), (False, False), (True, True)])
def test_no_garbage_is_looked_for_while_libraries_are_loaded(
    loaded: bool, collecting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only at their first import, also where it fails; who had switched it off finds it so."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    modules = {"torch": sys} if loaded else {}
    monkeypatch.setattr(progress, "sys", SimpleNamespace(**vars(sys) | {"modules": modules}))
    (gc.enable if collecting else gc.disable)()
    try:
        for error in (None, ImportError):
            with suppress(ImportError), loading_libraries():
                assert gc.isenabled() == (loaded and collecting)
                if error:
                    raise error
            assert gc.isenabled() == collecting
    finally:
        gc.enable()
    assert frozen == ([] if loaded or not collecting else [False, False])


def test_time_left() -> None:
    meter = Meter("work", 10, "items", now=0.0)
    assert meter.left(5.0) is None
    meter.advance(5)
    assert meter.left(5.0) == 5.0
    assert clock_time(59.6) == "1:00"
    assert clock_time(3723) == "1:02:03"


def test_long_lines_are_folded_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "step 50/400  loss 2.8520  ce_student 1.2345  ce_teacher 0.1234  kv 0.9876  cka 0.1111  lr 1.0e-03"
    assert console.fitted(line, Stream()) == line
    for columns in (60, 80):
        folded = console.fitted(line, Stream(columns)).split("\n")
        assert all(len(part) <= columns for part in folded)
        assert " ".join(" ".join(folded).split()) == " ".join(line.split())
        assert all(part.startswith("    ") for part in folded[1:])
    words = "  note: " + "word " * 40
    assert all(len(part) <= 60 for part in console.fitted(words, Stream(60)).split("\n"))


def test_a_table_that_is_folded_keeps_its_columns() -> None:
    rows = ["name                  steps  accuracy", "a long name of a run     10      25.0", "-" * 36]
    folded = console.fitted("\n".join(rows), Stream(30)).split("\n")
    assert folded == [
        "name                  steps",
        "    accuracy",
        "a long name of a run     10",
        "    25.0",
        "-" * 30,
    ]
    path = "wrote " + "x" * 90 + " and more"
    assert console.fitted(path, Stream(30)).split("\n") == ["wrote", "    " + "x" * 90, "    and more"]


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert console.paint("x", "red", Stream(80)) == "\x1b[31mx\x1b[0m"
    assert console.paint("x", "red", Stream()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.paint("x", "red", Stream(80)) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert console.paint("x", "red", Stream(80)) == "x"
