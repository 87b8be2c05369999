"""PBS Pro and OpenPBS."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.spec import JobSpec, clock

STATES = {**dict.fromkeys("QHWTSU", PENDING), **dict.fromkeys("REB", RUNNING), **dict.fromkeys("FXC", DONE)}
KILLED = 256  # exit codes from here on are signals


class Pbs(Scheduler):
    name = "pbs"
    prefix = "#PBS"
    job = "PBS_JOBID"
    index = "PBS_ARRAY_INDEX"
    least = 2
    home = "PBS_O_WORKDIR"
    warns = False
    no_qos = "name the queue with --partition, or write a directive into the site file"
    hold = ("-h",)
    head = ('read -r head <"$PBS_NODEFILE"',)

    def header(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        chunk = f"select={resources.nodes}:ncpus={resources.cpus}"
        chunk += f":ngpus={resources.gpus}" if resources.gpus else ""
        chunk += f":mem={resources.mem}mb" if resources.mem else ""
        lines = [f"-N {spec.name}", f"-l {chunk}:mpiprocs=1"]
        lines += ["-l place=scatter"] if resources.nodes > 1 else []
        lines += self._limits(spec)
        lines += [f"-J 0-{spec.array - 1}"] if spec.array is not None else []
        folder = f"{Path(spec.log).parent.as_posix()}/"  # a folder: the files are called by job id, tasks apart
        return [*lines, f"-o {folder}", f"-e {folder}"]

    def _limits(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        lines = [f"-l walltime={clock(resources.time)}"] if resources.time else []
        lines += [f"-q {resources.partition}"] if resources.partition else []
        lines += [f"-A {resources.account}"] if resources.account else []
        return [*lines, f"-r {'y' if spec.requeue else 'n'}"]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = ["-W", "depend=" + self._wait(after)] if after else []
        return ["qsub", *wait, str(script)]

    def _wait(self, after: Sequence[tuple[str, bool]]) -> str:
        return "afterok:" + ":".join(job for job, _ in after)

    def release(self, job: str) -> list[str]:
        return ["qrls", job]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["qstat", "-x", "-t", "-f", "-F", "json", *ids]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        for name, facts in json.loads(printed or "{}").get("Jobs", {}).items():
            code = facts.get("Exit_status")
            states[job_and_task(name)] = state_of(facts.get("job_state", ""), None if code is None else int(code))
        return states

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        return ["qrerun", environ.get(self.job, "")]

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        """The array's id: 123[].server in a task whose own id is 123[2].server."""
        return re.sub(r"\[\d+\]", "[]", environ.get(self.job, "")) or None


def job_and_task(name: str) -> tuple[str, int | None]:
    """(123[].server, 2) of 123[2].server."""
    task = re.search(r"\[(\d+)\]", name)
    return re.sub(r"\[\d+\]", "[]", name), int(task[1]) if task else None


def state_of(letter: str, code: int | None) -> str:
    """The state of a letter of qstat; for a job that ended, by its exit code."""
    state = STATES.get(letter[:1], UNKNOWN)
    if state != DONE or not code:
        return state
    return CANCELLED if code >= KILLED else FAILED
