"""Run jobs as processes, some at a time; one that fails stops no other and is reported at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kava.config.text import parse_text, read_text
from kava.config.typed_file import checked
from kava.files import make_folder, open_append
from kava.outputs import Output, check_folder, check_outputs
from kava.progress import progress
from kava.run_files import AGAIN, SteppedLine
from kava.stop_signals import continues_by

POLL = 0.3


@dataclass(frozen=True)
class Job:
    """Words after `kava`: a training, then evaluations. `updates` is the number of the training, 0 if unknown; `after` is
    the label of the job that must have succeeded before."""

    label: str
    folder: Path
    train: tuple[str, ...] = ()
    evaluate: tuple[tuple[str, ...], ...] = ()
    updates: int = 0
    after: str = ""

    @property
    def output(self) -> Path:
        """The file with what its processes print."""
        return self.folder.with_name(self.folder.name + ".out")

    def without(self, train: bool = False, evaluate: bool = False) -> "Job":
        """The job without its training or its evaluations."""
        job = replace(self, train=(), updates=0) if train else self
        return replace(job, evaluate=()) if evaluate else job

    def commands(self) -> list[tuple[str, ...]]:
        return [words for words in (self.train, *self.evaluate) if words]


@dataclass
class _Slot:
    """A running job, on its own device where several are named."""

    job: Job
    waiting: list[tuple[str, ...]]
    device: str | None
    process: subprocess.Popen[bytes] | None = None


def run_jobs(jobs: Sequence[Job], parallel: int = 1, quiet: bool = False) -> dict[str, str]:
    """Run all jobs; returns those that broke: label -> last line of the output."""
    for each in jobs:
        check_folder("the run's folder", each.folder)
        check_outputs([Output("the file of its output", each.output)])
    queue, slots = list(jobs), list[_Slot]()
    broken: dict[str, str] = {}
    devices, parallel = _devices(), max(1, parallel)
    steps, total = {job.label: 0 for job in jobs}, sum(job.updates for job in jobs) or None
    again = "the same command again: finished runs are kept, the others go on where they were"
    with continues_by(again), progress("train", total, "updates", show=not quiet) as meter:
        try:
            while queue or slots:
                while len(slots) < parallel and (job := _next(queue, [slot.job for slot in slots], broken)) is not None:
                    free = [device for device in devices if device not in [slot.device for slot in slots]]
                    slots.append(_Slot(job, job.commands(), free[0] if free else None))
                slots = [slot for slot in slots if _continues(slot, parallel, broken)]
                steps |= {slot.job.label: last_step(slot.job.folder) for slot in slots}
                meter.done, meter.note = sum(steps.values()), _note([slot.job for slot in slots], len(queue))
                time.sleep(POLL if slots else 0)
        finally:
            _stop([slot.process for slot in slots if slot.process is not None and slot.process.poll() is None])
    return broken


def _next(queue: list[Job], running: Sequence[Job], broken: dict[str, str]) -> Job | None:
    """Remove and return the first job that waits for none; a job that waits for a broken one is broken too."""
    while blocked := next((job for job in queue if job.after in broken), None):
        queue.remove(blocked)
        broken[blocked.label] = f"it begins where {blocked.after} ends, which broke"
    ahead = {job.label for job in (*queue, *running)}
    ready = next((job for job in queue if job.after not in ahead), None)
    if ready is not None:
        queue.remove(ready)
    return ready


def _continues(slot: _Slot, parallel: int, broken: dict[str, str]) -> bool:
    """Start the job's next process when the last one has ended; False when the job has ended."""
    if slot.process is not None:
        code = slot.process.poll()
        if code is None:
            return True
        verb = slot.waiting.pop(0)[0]
        if code:
            broken[slot.job.label] = f"{verb} ended with code {code}: {last_line(slot.job.output)}"
            return False
    if not slot.waiting:
        return False
    slot.process = _start(slot.job, slot.waiting[0], parallel, slot.device)
    return True


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate what runs; a training saves a checkpoint before it ends."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def last_line(path: Path) -> str:
    """The last line of an output file that is not a hint: the error."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    texts = [line.strip() for line in lines if line.strip() and not line.strip().startswith("hint:")]
    return texts[-1] if texts else "(no output)"


def _start(job: Job, words: Sequence[str], parallel: int, device: str | None) -> subprocess.Popen[bytes]:
    make_folder(job.folder.parent)
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **os.environ}
    environment["KAVA_PARENT"] = str(os.getpid())  # a training whose parent was killed saves and stops
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    command = [sys.executable, "-m", "kava", *words]
    with open_append(job.output) as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
        )


def _devices() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, where there are several: each job gets one."""
    named = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
    return named if len(named) > 1 else []


def _note(running: Sequence[Job], waiting: int) -> str:
    """Which jobs run and how many wait, short enough for a terminal's line."""
    names = ", ".join(job.label for job in running[:2]) + (f" and {len(running) - 2} more" if len(running) > 2 else "")
    return f"{names or 'none'} running" + (f", {waiting} waiting" if waiting else "")


def last_step(folder: Path) -> int:
    """The last update in a run's log."""
    log = folder / "log.jsonl"
    lines = read_text(log, str(log), AGAIN).splitlines() if log.is_file() else []
    whole = [parse_text(line, str(log), as_json=True) for line in lines[-2:] if line.endswith("}")]
    return max((checked(line, SteppedLine, str(log), AGAIN).step for line in whole), default=0)
