"""LSF. The script goes to bsub's standard input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kava.cluster.schedulers.base import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    UNKNOWN,
    Scheduler,
    States,
    word_after,
)
from kava.cluster.spec import JobSpec
from kava.errors import ConfigError

AGAIN = 99  # exit code that puts a job back into the queue
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

    def header(self, spec: JobSpec) -> list[str]:
        asked = spec.resources
        if asked.qos:
            raise ConfigError(
                "lsf has no qos", "name the queue with --partition, or write a directive into the site file"
            )
        array = f"[1-{spec.array}]" if spec.array is not None else ""
        lines = [f'-J "{spec.name}{array}"', f"-n {asked.nodes * asked.cpus}", f'-R "span[ptile={asked.cpus}]"']
        lines += [f'-gpu "num={asked.gpus}"'] if asked.gpus else []
        lines += [f'-R "rusage[mem={asked.mem}MB]"'] if asked.mem else []
        if asked.time:
            minutes = -(-asked.time // 60)
            lines += [f"-W {minutes // 60}:{minutes % 60:02d}"]
            lines += ["-wa USR1", f"-wt {-(-spec.signal // 60)}"] if spec.requeue else []
        lines += [f"-q {asked.partition}"] if asked.partition else []
        lines += [f"-P {asked.account}"] if asked.account else []
        unique = "%J_%I" if spec.array is not None else "%J"
        lines += [f"-o {spec.log}_{unique}.out", f"-e {spec.log}_{unique}.err"]
        return [*lines, *(["-r", f'-Q "{AGAIN}"'] if spec.requeue else ["-rn"])]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = ["-w", " && ".join(f"done({job})" for job, _ in after), "-ti"] if after else []
        return ["bsub", *wait]

    def parse_id(self, printed: str) -> str:
        return word_after(printed, r"Job <(\d+)>", self.name)

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["bjobs", "-a", "-json", "-o", "jobid jobindex stat", *ids]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        found: States = {}
        for row in json.loads(printed or "{}").get("RECORDS", []):
            task = str(row.get("JOBINDEX", ""))
            key = str(row.get("JOBID", "")).partition("[")[0]
            number = int(task) - self.first if task.isdigit() and task != "0" else None
            found[key, number] = STATES.get(str(row.get("STAT")), UNKNOWN)
        return found

    def cancel(self, job: str) -> list[str]:
        return ["bkill", job]

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        return AGAIN

    def task_of(self, environ: Mapping[str, str]) -> int | None:
        """The index is 0 in a job that is no array."""
        found = super().task_of(environ)
        return None if found == -self.first else found

    def head(self) -> list[str]:
        return [
            'read -r -a places <<<"$LSB_MCPU_HOSTS"  # host, slots, host, slots, ...',
            "head=${places[0]}",
            "hosts=$(printf '%s\\n' \"${places[@]}\" | awk 'NR % 2' | paste -sd ' ')",
        ]

    def launch(self, spec: JobSpec) -> str:
        return 'blaunch -z "$hosts"'
