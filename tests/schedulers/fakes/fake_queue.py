"""A fake queue: what the fakes of PBS, Torque, LSF and Cobalt share. Jobs are entries of the file $FAKE_QUEUE.

None runs by itself: `begin` gives the next task the state of one that runs, `end` runs its script.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WAITS, RUNS, ENDED, GONE = "waits", "runs", "ended", "gone"
QUEUES = ("batch", "gpu")
Job = dict[str, Any]


class Refused(Exception):
    """What a command says on standard error, and its exit code."""

    def __init__(self, said: str, code: int = 1):
        super().__init__(said)
        self.said, self.code = said, code


class Queue:
    """The jobs, oldest first. A task has a state and an exit code; "-" is the one of a job that is no array."""

    def __init__(self) -> None:
        self.file = Path(os.environ["FAKE_QUEUE"])
        self.jobs: list[Job] = json.loads(self.file.read_text()) if self.file.exists() else []

    def save(self) -> None:
        self.file.write_text(json.dumps(self.jobs, indent=1))

    def add(self, text: str, tasks: range | None, after: list[int], **more: Any) -> Job:
        number = 4711 + len(self.jobs)
        script = self.file.with_name(f"spooled-{number}")
        script.write_text(text)
        names = ["-"] if tasks is None else [str(task) for task in tasks]
        job = {"number": number, "script": str(script), "folder": os.getcwd(), "after": after, "held": False, **more}
        job["tasks"] = {name: {"state": WAITS, "code": None} for name in names}
        self.jobs.append(job)
        return job

    def find(self, number: int) -> Job | None:
        return next((job for job in self.jobs if job["number"] == number), None)

    def hopeless(self, job: Job) -> bool:
        before = [task for number in job["after"] for task in self._job(number)["tasks"].values()]
        return any(task["state"] == GONE or task["code"] for task in before)

    def _job(self, number: int) -> Job:
        job = self.find(number)
        if job is None:
            raise Refused(f"no job {number}")
        return job

    def begin(self) -> None:
        """The next task that may run does; jobs whose dependencies can never come true are gone."""
        for job in self.jobs:
            for task in job["tasks"].values() if self.hopeless(job) else []:
                task["state"] = GONE if task["state"] == WAITS else task["state"]
        for job in self.jobs:
            before = [task for number in job["after"] for task in self._job(number)["tasks"].values()]
            if job["held"] or any(task["state"] != ENDED or task["code"] for task in before):
                continue
            for name, task in job["tasks"].items():
                if task["state"] == WAITS:
                    task["state"] = RUNS
                    self.save()
                    print(job["number"], name)
                    return
        self.save()

    def running(self) -> Iterator[tuple[Job, str]]:
        for job in self.jobs:
            yield from ((job, name) for name, task in job["tasks"].items() if task["state"] == RUNS)

    def end(
        self, variables: Callable[[Job, str], dict[str, str]], files: Callable[[Job, str], tuple[str, str]]
    ) -> None:
        """Runs what has begun, in the folder and with the variables that it would have."""
        for job, name in list(self.running()):
            given = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], **variables(job, name)}
            out, err = (Path(job["folder"]) / one for one in files(job, name))
            with out.open("a") as printed, err.open("a") as said:
                done = subprocess.run(
                    ["bash", job["script"]], cwd=job.get("start", job["folder"]), env=given, stdout=printed, stderr=said,
                    stdin=subprocess.DEVNULL, check=False,
                )  # fmt: skip
            again = done.returncode == job.get("again")
            job["tasks"][name] = {"state": WAITS if again else ENDED, "code": None if again else done.returncode}
        self.save()


def options(words: list[str], valued: set[str], plain: set[str], name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Options with their values, and the operands. One that does not exist is refused."""
    found: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        flag, equals, value = rest.pop(0).partition("=") if words[0].startswith("--") else (rest.pop(0), "", "")
        if flag in plain:
            found.setdefault(flag, []).append("")
        elif flag in valued:
            found.setdefault(flag, []).append(value if equals else rest.pop(0))
        else:
            raise Refused(f"{name}: invalid option -- '{flag}'", 2)
    return found, rest


def directives(text: str, prefix: str) -> list[str]:
    """The words behind `prefix`, up to the first command."""
    words: list[str] = []
    for line in text.splitlines():
        if line.startswith(prefix):
            words += shlex.split(line.removeprefix(prefix))
        elif line.strip() and not line.startswith("#"):
            break
    return words


def main(commands: dict[str, Callable[[Queue, list[str]], None]]) -> int:
    """Runs the command that the first word names."""
    queue = Queue()
    try:
        commands[sys.argv[1]](queue, sys.argv[2:])
    except Refused as refusal:
        print(refusal.said, file=sys.stderr)
        return refusal.code
    return 0
