"""`kava task`, which a job's script becomes: runs commands, writes a status file, passes the scheduler's signals on.

    state     started, ok, failed, requeued, or refused (something it needs is not ok)

USR1 (a scheduler's warning before the time limit) and our own clock stop the command, which saves a checkpoint, and put
the job back into the queue. TERM, INT, HUP and USR2 stop it as well; the sender decides whether it runs again.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.cluster.render import THEN
from kava.cluster.schedulers.base import Scheduler
from kava.cluster.spec import now
from kava.cluster.submit import refusal
from kava.errors import ConfigError
from kava.files import write_json
from kava.outputs import Output, check_outputs
from kava.stop_signals import STOP_SIGNALS, heeded

STARTED, OK, FAILED, REQUEUED, REFUSED = "started", "ok", "failed", "requeued", "refused"
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")
AGAIN = ("SIGUSR1", "SIGALRM")  # those after which the job goes back into the queue
NOT_FOUND = 127
FORWARDED = 10.0  # seconds in which a command should have passed TERM on to what it started
# Checked by hand: `kava task` starts with every job and loads no pydantic.
STATUS: dict[str, Any] = {
    "state": str, "exit_code": int, "host": str, "job": str, "task": int, "attempt": int, "signal": str, "reason": list,
}  # fmt: skip
_RANGE = re.compile(r"\[(\d+)-(\d+)\](?=\.json$)")


@dataclass
class Task:
    """One run of a job's commands. `run` returns the exit code."""

    status: Path
    commands: list[list[str]]
    scheduler: Scheduler
    needs: list[str] = field(default_factory=list)
    requeue: bool = False
    keep_going: bool = False
    stop_after: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    signal: str | None = None
    process: subprocess.Popen[bytes] | None = None
    told: threading.Timer | None = None  # set once the command has got TERM
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self) -> int:
        if not self.status.parent.is_dir():
            raise ConfigError(
                f"{self.status.parent} is not visible from {socket.gethostname()} (in {Path.cwd()})",
                "put the outputs on a file system that login and compute nodes share",
            )
        check_outputs([Output("--status", self.status)])
        before = read_status(self.status)
        key = {"job": self.scheduler.id_of(self.environ), "task": self.scheduler.task_of(self.environ)}
        same = key == {name: before.get(name) for name in key}
        attempt = int(before.get("attempt", 0)) + 1 if same else 1
        self.facts = {"state": STARTED, "exit_code": None, "host": socket.gethostname(), **key, "attempt": attempt}
        self.facts |= {"began": now(), "ended": None, "command": self.commands}
        lacking = [why for file in needed(self.needs) if (why := _not_ok(file))]
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            _say(f"error: not run, because {lacking[0]}{more}")
            return self._end(REFUSED, self.scheduler.refused, reason=lacking)
        with self._signals():  # to the end: a second one must not break off the requeueing
            write_json(self.status, self.facts)
            code = self._all()
            if self.signal is not None and code:
                return self._stopped(code)
            return self._end(FAILED if code else OK, code)

    def _all(self) -> int:
        """The first exit code that is not 0; that of SIGTERM where a signal came before the last command."""
        worst = 0
        for words in self.commands:
            if self.signal is not None:
                return worst or 128 + signal.SIGTERM
            code = self._run_one(words)
            worst = worst or code
            if code and not self.keep_going:
                break
        return worst

    def _run_one(self, words: Sequence[str]) -> int:
        print(f"kava task: {' '.join(words)}", flush=True)
        environment = {name: value for name, value in self.environ.items() if name != "KAVA_PARENT"}
        try:
            # in its own session: a signal to the job's process group reaches only this process, which passes it on once
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": environment, "start_new_session": True}
            self.process = running = subprocess.Popen(
                words, **how, preexec_fn=_ignore_warnings if os.name == "posix" else None
            )
        except OSError as error:
            _say(f"error: {words[0]} cannot be started: {error.strerror}")
            return NOT_FOUND
        if self.signal is not None:  # it came while the process was being started
            self._pass_on()
        code = running.wait()
        self.process = None
        if self.told is not None:
            self.told.cancel()
            _tell_group(running)  # what a shell has left behind
        return 128 - code if code < 0 else code

    def _stopped(self, code: int) -> int:
        """The exit code after a stop by a signal: requeued if it was a warning and the scheduler can, else failed."""
        self.facts["signal"] = self.signal
        if self.signal not in AGAIN or not self.requeue:
            return self._end(FAILED, code, reason=[f"stopped by {self.signal}; submit it again to continue"])
        how = self.scheduler.requeue(self.environ)
        if how is None:
            _say(f"{self.scheduler.name} cannot requeue: submit the same again to continue")
            return self._end(FAILED, code, reason=["stopped at the time limit"])
        self._end(REQUEUED, code)
        if isinstance(how, int):
            return how
        why = refusal(how)
        if why is not None:
            _say(f"error: {' '.join(how)}: {why}; submit the same again to continue")
            return self._end(FAILED, code, reason=[f"requeue refused: {why}"])
        return code

    def _end(self, state: str, code: int, **more: Any) -> int:
        self.facts |= {"state": state, "exit_code": code, "ended": now(), **more}
        write_json(self.status, self.facts)
        return code

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        numbers = [number for number in numbers if number in heeded() or number not in STOP_SIGNALS]
        before = {number: signal.signal(number, self._caught) for number in numbers}
        alarm = getattr(signal, "alarm", int)  # Windows has no alarm
        alarm(self.stop_after or 0)
        try:
            yield
        finally:
            alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: Any) -> None:
        self.signal = self.signal or signal.Signals(number).name
        self._pass_on()

    def _pass_on(self) -> None:
        """Send TERM to the command, once: it saves and stops. What it has started (loggers, loaders) is its own affair.

        A shell passes nothing on, so its whole group is told when it has ended, or FORWARDED seconds later.
        """
        process = self.process
        if process is not None and self.told is None:
            process.send_signal(signal.SIGTERM)
            self.told = threading.Timer(FORWARDED, _tell_group, (process,))
            self.told.start()


def _tell_group(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGTERM)


def _ignore_warnings() -> None:
    """Grid Engine warns every process of a job in whatever session; the signals must not kill the commands."""
    for name in ("SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def split(words: Sequence[str]) -> list[list[str]]:
    """The commands that --then separates."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            commands.append([])
        else:
            commands[-1].append(word)
    if not all(commands):
        raise ConfigError("kava task: no command", "kava task --status FILE -- COMMAND [--then COMMAND ...]")
    return commands


def needed(words: Sequence[str]) -> list[Path]:
    """The status files that the words name; `status-x-[0-2].json` names three."""
    spans = [(word, _RANGE.search(word)) for word in words]
    ranges = [(word, range(int(span[1]), int(span[2]) + 1) if span else [0]) for word, span in spans]
    return [Path(_RANGE.sub(str(number), word)) for word, numbers in ranges for number in numbers]


def read_status(path: Path) -> dict[str, Any]:
    """The contents of a status file; {} where it is not written yet."""
    if not path.is_file():
        return {}
    again = "remove it and submit the task again"
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a status file ({error})", again) from error
    if not isinstance(status, dict):
        raise ConfigError(f"{path}: not a status file (a {type(status).__name__})", again)
    for name, kinds in STATUS.items():
        if not isinstance(status.get(name), kinds | None):
            raise ConfigError(f"{path}: {name} = {status[name]!a} is not valid", again)
    return status


def _not_ok(path: Path) -> str | None:
    """Why a needed task is not ok; None if it is."""
    status = read_status(path)
    state, where = status.get("state"), f" (job {status['job']})" if status.get("job") else ""
    why = f"{path} says {state}{where}" if state else f"{path} is not there: that task has not run"
    return None if state == OK else why


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
