"""Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, UNKNOWN, Scheduler, States
from kava.cluster.spec import JobSpec, clock

STATES = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING", "PREEMPTED"), PENDING),
    **dict.fromkeys(("RUNNING", "COMPLETING", "STAGE_OUT"), RUNNING),
    "COMPLETED": DONE,
    **dict.fromkeys(("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"), FAILED),
    "CANCELLED": CANCELLED,
}


class Slurm(Scheduler):
    name = "slurm"
    prefix = "#SBATCH"
    job = "SLURM_JOB_ID"
    index = "SLURM_ARRAY_TASK_ID"
    home = "SLURM_SUBMIT_DIR"
    id_pattern = r"(?m)^(\d+)(?:;\S+)?\s*$"  # `--parsable` prints ID or ID;CLUSTER, after what a site's filter may say
    kill = "scancel"
    head = ('read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',)

    def header(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        unique = "%A_%a" if spec.array is not None else "%j"
        lines = [f"--job-name={spec.name}", f"--nodes={resources.nodes}", "--ntasks-per-node=1"]
        lines += [f"--gres=gpu:{resources.gpus}"] if resources.gpus else []
        lines += [f"--cpus-per-task={resources.cpus}"]
        lines += (
            [f"--mem={resources.mem // 1024}G" if resources.mem % 1024 == 0 else f"--mem={resources.mem}M"]
            if resources.mem
            else []
        )
        lines += [f"--time={clock(resources.time)}"] if resources.time else []
        for name in ("partition", "account", "qos"):
            lines += [f"--{name}={getattr(resources, name)}"] if getattr(resources, name) else []
        lines += [f"--array=0-{spec.array - 1}"] if spec.array is not None else []
        lines += [f"--output={spec.log}_{unique}.out", f"--error={spec.log}_{unique}.err", "--open-mode=append"]
        if spec.requeue:
            lines += ["--requeue", f"--signal=B:USR1@{spec.signal}"]
        else:
            lines += ["--no-requeue"]
        return lines

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = [f"--dependency=afterok:{':'.join(job for job, _ in after)}", "--kill-on-invalid-dep=yes"]
        return ["sbatch", "--parsable", *(wait if after else []), str(script)]

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """sacct where there is accounting, else the controller, which forgets a job minutes after its end."""
        listed = ",".join(ids)
        return [
            ["sacct", "-X", "-n", "-P", "-j", listed, "-o", "JobID,State"],
            *(["scontrol", "--oneliner", "show", "job", job] for job in ids),
        ]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        for line in printed.splitlines():
            if command[0] == "sacct":
                job, _, state = line.strip().partition("|")
                for key in _tasks(job):
                    states[key] = _state(state)
            else:
                facts = dict(re.findall(r"(\w+)=(\S*)", line))
                job = facts.get("ArrayJobId") or facts.get("JobId", "")
                text = f"{job}_[{facts['ArrayTaskId']}]" if "ArrayTaskId" in facts else job
                for key in _tasks(text):
                    states[key] = _state(facts.get("JobState", ""))
        return states

    def requeue(self, environ: Mapping[str, str]) -> list[str] | int | None:
        return ["scontrol", "requeue", environ.get(self.job, "")]

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        return environ.get("SLURM_ARRAY_JOB_ID") or environ.get(self.job)

    @property
    def number(self) -> str:
        return "SLURM_JOB_ID"

    def launch(self, spec: JobSpec) -> str:
        resources = spec.resources  # srun does not take over --cpus-per-task by itself
        nodes = f"--nodes={resources.nodes} --ntasks={resources.nodes} --ntasks-per-node=1"
        return f"srun {nodes} --cpus-per-task={resources.cpus} --kill-on-bad-exit=1"


def _state(text: str) -> str:
    """The state of a word of Slurm's; also of `CANCELLED by 1000` and `COMPLETED+`."""
    name = re.match(r"[A-Z_]*", text)
    return STATES.get(name[0], UNKNOWN) if name else UNKNOWN


def _tasks(text: str) -> list[tuple[str, int | None]]:
    """The keys that `27`, `27_2` and `27_[0-1,4%2]` stand for."""
    job, _, tasks = text.partition("_")
    if not job.isdigit():
        return []
    if not tasks:
        return [(job, None)]
    keys: list[tuple[str, int | None]] = []
    for part in tasks.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            keys += [(job, task) for task in range(int(first), int(last or first) + 1)]
    return keys
