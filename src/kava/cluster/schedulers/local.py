"""No scheduler: the same scripts as background processes of this machine, one after another."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kava.cluster.schedulers.base import PENDING, Scheduler, States
from kava.cluster.spec import JobSpec

DRIVER = (sys.executable, "-m", "kava.cluster.driver")


class Local(Scheduler):
    name = "local"
    job = "KAVA_JOB_ID"
    index = "KAVA_TASK_INDEX"
    has_afterok = False  # there is no time limit to warn of
    requeue_code = 99
    head = ("head=localhost",)

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        tasks = "-" if spec.array is None else str(spec.array)
        return [*DRIVER, str(script), spec.log, tasks, *(job for job, _ in after)]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["ps", "-ww", "-o", "pid=,args=", "-p", ",".join(ids)]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        """A driver that is alive waits or runs; its tasks' status files say which. Another process may have its id by now."""
        rows = [line.split(None, 1) for line in printed.splitlines()]
        return {(row[0], None): PENDING for row in rows if len(row) == 2 and "kava.cluster.driver" in row[1]}

    def cancel(self, job: str) -> list[str]:
        return [*DRIVER, "--cancel", job]
