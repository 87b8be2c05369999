"""A `kava` command in a process of its own that stands still at a chosen moment until it has been sent a signal.

The process is forked from this one, which has imported everything: a second, where a new interpreter takes five.
`python tests/struck.py FOLDER MOMENT NTH WORDS...` is the same as a program, for what has to be started by another.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil

import processes
from kava.cli.main import main

# what is about to be called when the process stands still
MOMENTS = {
    "loading": "kava.training.run:load_data",
    "calibration": "kava.training.method_line:calibrate",
    "workers": "kava.training.workers:_block",
    "update": "kava.training.trainer:KavaTrainer.compute_loss",
    "validation": "kava.training.method_line:score",
    "held_out": "kava.training.method_line:held_out",
    "saving": "kava.training.aux_state:save",
    "optimizer": "kava.training.trainer:KavaTrainer._save_optimizer_and_scheduler",
    "renaming": "kava.training.trainer:replace_folder",
    "rotation": "kava.training.trainer:rotate",
    "best": "kava.training.trainer:KavaTrainer.save_best",
    "closing": "kava.training.folder:update",
    "shard": "kava.teachers.extract:_begin",
    "job": "kava.lab.run_local:_start",
}
HEARD = ("saving a checkpoint after this update", "interrupted")
PATIENCE = 300.0


def stand_still(folder: Path, moment: str, nth: int) -> None:
    """Makes this process wait before the nth call of a function until the file `go` is there."""
    place, _, name = MOMENTS[moment].partition(":")
    owner: Any = importlib.import_module(place)
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    name = name.split(".")[-1]
    right, calls = getattr(owner, name), 0

    def waiting(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            (folder / "at").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
        return right(*args, **named)

    setattr(owner, name, waiting)


def run_and_exit(words: list[str], prepare: Callable[[], None]) -> NoReturn:
    """The command `kava` as the interpreter runs it, without the time that an interpreter takes to end."""
    code = 1
    try:
        prepare()
        sys.argv[1:] = words
        code = main()
    except BaseException:  # noqa: BLE001  (what the interpreter would print)
        traceback.print_exc()
    sys.stdout.flush()
    for child in multiprocessing.active_children():
        child.join()
    os._exit(code)


class Command:
    """A command under way. `out` is what it and its children say."""

    def __init__(self, folder: Path, *words: str, moment: str = "", nth: int = 1, spawn: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.output = folder, folder / "out"
        for name in ("at", "go"):
            (folder / name).unlink(missing_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup runs the tests
            out = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = (os.fdopen(handle, "w", 1, closefd=False) for handle in (1, 2))

            def prepare() -> None:
                if spawn:
                    multiprocessing.set_start_method("spawn", force=True)
                if moment:
                    stand_still(folder, moment, nth)

            run_and_exit(list(words), prepare)
        self.code: int | None = None

    @property
    def out(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def until(self, what: Callable[[], bool]) -> None:
        """Waits for it or for the end."""
        last = time.monotonic() + PATIENCE
        while not self.ended() and not what():
            if time.monotonic() > last:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"no end in sight: {self.out[-3000:]}")
            time.sleep(0.005)

    def standing(self) -> Command:
        """Once it has come to its moment."""
        self.until((self.folder / "at").exists)
        assert self.code is None, self.out
        return self

    def send(self, number: int, target: str, times: int = 1) -> None:
        """Sends a signal to the process, its group, or every process below it as well, and lets it go on."""
        for _ in range(times):
            if target == "main":
                os.kill(self.pid, number)
            elif target == "group":
                os.killpg(self.pid, number)
            else:
                process = psutil.Process(self.pid)
                for each in (process, *process.children(recursive=True)):
                    os.kill(each.pid, number)
        self.until(lambda: any(text in self.out for text in HEARD))
        (self.folder / "go").touch()

    def end(self) -> int:
        """Its exit code; negative where a signal killed it."""
        self.until(lambda: False)
        assert self.code is not None
        return self.code


class Torchrun(Command):
    """The same as two processes under torchrun, which gives each a session of its own; `pid` is torchrun's."""

    def __init__(self, folder: Path, *words: str, moment: str = "", nth: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.output, self.code = folder, folder / "out", None
        program = (__file__, str(folder), moment, str(nth)) if moment else ("-m", "kava")
        with open(self.output, "w") as out:
            self.process = subprocess.Popen(
                processes.under_torchrun(*program, *words), env=processes.environment(),
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    def ended(self) -> bool:
        self.code = self.process.poll()
        return self.code is not None

    def ranks(self) -> list[psutil.Process]:
        """The two training processes, the first of them first."""
        return sorted(psutil.Process(self.pid).children(), key=lambda process: int(process.environ()["RANK"]))

    def send(self, number: int, target: str, times: int = 1) -> None:
        """Target rank0: only the first training process; the others as above."""
        if target == "rank0":
            os.kill(self.ranks()[0].pid, number)
            self.until(lambda: any(text in self.out for text in HEARD))
            (self.folder / "go").touch()
        else:
            super().send(number, target, times)


if __name__ == "__main__":
    run_and_exit(sys.argv[4:], lambda: stand_still(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
