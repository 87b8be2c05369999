"""LSF. The script goes to bsub's standard input."""

from collections.abc import Mapping, Sequence
from typing import Any

from kava.cluster.schedulers.base import UNKNOWN, Scheduler, States, printed_json, words_for_states
from kava.cluster.spec import JobSpec


class Lsf(Scheduler):
    name = "lsf"
    prefix = "#BSUB"
    lines = (
        '-J "{name}{array}"', "-n {slots}", '-R "span[ptile={cpus}]"', '-gpu "num={gpus}"', '-R "rusage[mem={mem}MB]"',
        "-W {limit}", "-wa {warning}", "-wt {warned}", "-q {partition}", "-P {account}", "-o {file}.out", "-e {file}.err",
        "{rerun}", '-Q "{code}"',
    )  # fmt: skip
    rerun = ("-rn", "-r")
    unique = ("%J", "%J_%I")
    no_qos = "name the queue with --partition, or write a directive into the site file"
    submit_command = ("bsub",)
    waits = ("-w", "done({})", "-ti")
    between = ") && done("
    id_pattern = r"Job <(\d+)>"
    state_command = ("bjobs", "-a", "-json", "-o", "jobid jobindex stat")
    state_words = words_for_states(
        pending="PEND PSUSP WAIT PROV", running="RUN USUSP SSUSP", done="DONE", failed="EXIT"
    )
    kill = "bkill"
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
    launcher = 'blaunch -z "$hosts"'

    def values(self, spec: JobSpec) -> dict[str, Any]:
        values = super().values(spec)
        minutes, warns = values["minutes"], spec.requeue and spec.resources.time
        return values | {
            "array": f"[{values['tasks']}]" if values["tasks"] else "",
            "slots": spec.resources.nodes * spec.resources.cpus,
            "limit": minutes and f"{minutes // 60}:{minutes % 60:02d}",
            "warning": "USR1" if warns else None,
            "warned": -(-spec.signal // 60) if warns else None,
            "code": self.requeue_code if spec.requeue else None,
        }

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        for row in printed_json(printed).get("RECORDS", []):
            job = str(row.get("JOBID", "")).partition("[")[0]
            task = self.task_of({self.index: str(row.get("JOBINDEX", ""))})
            states[job, task] = self.state_words.get(str(row.get("STAT")), UNKNOWN)
        return states

    def task_of(self, environ: Mapping[str, str]) -> int | None:
        """The index is 0 in a job that is no array."""
        task = super().task_of(environ)
        return None if task == -self.first else task
