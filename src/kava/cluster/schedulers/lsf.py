"""LSF. The script goes to bsub's standard input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kava.cluster.schedulers.base import DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.spec import JobSpec

STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT", "PROV"), PENDING),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP"), RUNNING),
    "DONE": DONE,
    "EXIT": FAILED,
}


class Lsf(Scheduler):
    name = "lsf"
    prefix = "#BSUB"
    job = "LSB_JOBID"
    index = "LSB_JOBINDEX"
    first = 1
    home = "LS_SUBCWD"
    reads_script = True
    requeue_code = 99
    head = (
        'read -r -a places <<<"$LSB_MCPU_HOSTS"  # host, slots, host, slots, ...',
        "head=${places[0]}",
        "hosts=$(printf '%s\\n' \"${places[@]}\" | awk 'NR % 2' | paste -sd ' ')",
    )
    no_qos = "name the queue with --partition, or write a directive into the site file"
    id_pattern = r"Job <(\d+)>"
    kill = "bkill"

    def header(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        array = f"[1-{spec.array}]" if spec.array is not None else ""
        lines = [
            f'-J "{spec.name}{array}"',
            f"-n {resources.nodes * resources.cpus}",
            f'-R "span[ptile={resources.cpus}]"',
        ]
        lines += [f'-gpu "num={resources.gpus}"'] if resources.gpus else []
        lines += [f'-R "rusage[mem={resources.mem}MB]"'] if resources.mem else []
        if resources.time:
            minutes = -(-resources.time // 60)
            lines += [f"-W {minutes // 60}:{minutes % 60:02d}"]
            lines += ["-wa USR1", f"-wt {-(-spec.signal // 60)}"] if spec.requeue else []
        lines += [f"-q {resources.partition}"] if resources.partition else []
        lines += [f"-P {resources.account}"] if resources.account else []
        unique = "%J_%I" if spec.array is not None else "%J"
        lines += [f"-o {spec.log}_{unique}.out", f"-e {spec.log}_{unique}.err"]
        return [*lines, *(["-r", f'-Q "{self.requeue_code}"'] if spec.requeue else ["-rn"])]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = ["-w", " && ".join(f"done({job})" for job, _ in after), "-ti"] if after else []
        return ["bsub", *wait]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["bjobs", "-a", "-json", "-o", "jobid jobindex stat", *ids]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        for row in json.loads(printed or "{}").get("RECORDS", []):
            task = str(row.get("JOBINDEX", ""))
            key = str(row.get("JOBID", "")).partition("[")[0]
            number = int(task) - self.first if task.isdigit() and task != "0" else None
            states[key, number] = STATES.get(str(row.get("STAT")), UNKNOWN)
        return states

    def task_of(self, environ: Mapping[str, str]) -> int | None:
        """The index is 0 in a job that is no array."""
        task = super().task_of(environ)
        return None if task == -self.first else task

    def launch(self, spec: JobSpec) -> str:
        return 'blaunch -z "$hosts"'
