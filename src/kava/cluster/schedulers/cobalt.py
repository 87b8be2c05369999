"""Cobalt: whole nodes, no arrays, no warning before the time limit, nothing put back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kava.cluster.schedulers.base import DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.spec import JobSpec

STATES = {
    **dict.fromkeys(("queued", "starting", "dep_hold", "user_hold", "admin_hold", "maxrun_hold"), PENDING),
    **dict.fromkeys(("running", "exiting", "killing"), RUNNING),
    "done": DONE,
    "dep_fail": FAILED,
}


class Cobalt(Scheduler):
    name = "cobalt"
    prefix = "#COBALT"
    job = "COBALT_JOBID"
    warns = False
    head = ('read -r head <"$COBALT_NODEFILE"',)
    no_qos = "name the queue with --partition"

    def header(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        lines = [f"--jobname {spec.name}", f"-n {resources.nodes}"]
        lines += [f"-t {-(-resources.time // 60)}"] if resources.time else []
        lines += [f"-q {resources.partition}"] if resources.partition else []
        lines += [f"-A {resources.account}"] if resources.account else []
        return [*lines, f"-O {spec.log}_{spec.name}"]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = ["--dependencies", ":".join(job for job, _ in after)] if after else []
        return ["qsub", *wait, "--mode", "script", str(script)]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["qstat", "--header=JobID:State", *ids]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        rows = [line.split() for line in printed.splitlines()]
        return {
            (row[0], None): STATES.get(row[1].lower(), UNKNOWN) for row in rows if len(row) == 2 and row[0].isdigit()
        }

    def launch(self, spec: JobSpec) -> str:
        return f'mpirun -f "$COBALT_NODEFILE" -n {spec.resources.nodes} -ppn 1'
