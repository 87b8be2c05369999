"""No scheduler: the same scripts as background processes of this machine, one after another."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kava.cluster.schedulers.base import PENDING, Scheduler, States
from kava.cluster.spec import JobSpec

AGAIN = 99  # exit code of a task that wants to run once more


class Local(Scheduler):
    name = "local"
    job = "KAVA_JOB_ID"
    index = "KAVA_TASK_INDEX"
    has_afterok = False  # the time limit is nobody's, so that nothing needs to warn of it

    def header(self, spec: JobSpec) -> list[str]:
        return []

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        tasks = [str(spec.array)] if spec.array is not None else ["-"]
        return [sys.executable, "-m", "kava.cluster.driver", str(script), spec.log, *tasks, *(job for job, _ in after)]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["ps", "-ww", "-o", "pid=,args=", "-p", ",".join(ids)]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        """A driver that lives waits or runs: its tasks say which. A number may belong to another process by now."""
        rows = [line.split(None, 1) for line in printed.splitlines()]
        return {(row[0], None): PENDING for row in rows if len(row) == 2 and "kava.cluster.driver" in row[1]}

    def cancel(self, job: str) -> list[str]:
        return [sys.executable, "-m", "kava.cluster.driver", "--cancel", job]

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        return AGAIN

    def head(self) -> list[str]:
        return ["head=localhost"]
