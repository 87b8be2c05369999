"""Slurm."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kava.cluster.schedulers.base import UNKNOWN, Scheduler, States, words_for_states
from kava.cluster.spec import JobSpec


class Slurm(Scheduler):
    name = "slurm"
    prefix = "#SBATCH"
    lines = (
        "--job-name={name}", "--nodes={nodes}", "--ntasks-per-node=1", "--gres=gpu:{gpus}", "--cpus-per-task={cpus}",
        "--mem={memory}", "--time={walltime}", "--partition={partition}", "--account={account}", "--qos={qos}",
        "--array={tasks}", "--output={file}.out", "--error={file}.err", "--open-mode=append", "{rerun}",
        "--signal=B:USR1@{warned}",
    )  # fmt: skip
    rerun = ("--no-requeue", "--requeue")
    unique = ("%j", "%A_%a")
    submit_command = ("sbatch", "--parsable")
    waits = ("--dependency=afterok:{}", "--kill-on-invalid-dep=yes")
    id_pattern = r"(?m)^(\d+)(?:;\S+)?\s*$"  # `--parsable` prints ID or ID;CLUSTER, after what a site's filter may say
    state_words = words_for_states(
        pending="PENDING REQUEUED REQUEUE_HOLD SUSPENDED CONFIGURING PREEMPTED",
        running="RUNNING COMPLETING STAGE_OUT",
        done="COMPLETED",
        failed="FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE",
        cancelled="CANCELLED",
    )
    kill = "scancel"
    job = "SLURM_JOB_ID"
    index = "SLURM_ARRAY_TASK_ID"
    home = "SLURM_SUBMIT_DIR"
    number = "SLURM_JOB_ID"
    requeues = ("scontrol", "requeue")
    head = ('read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',)
    # srun does not take over --cpus-per-task by itself
    launcher = "srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=1"

    def values(self, spec: JobSpec) -> dict[str, Any]:
        mem = spec.resources.mem
        memory = f"{mem}M" if mem and mem % 1024 else mem and f"{mem // 1024}G"
        return super().values(spec) | {"memory": memory}

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """sacct where there is accounting, else the controller, which forgets a job minutes after its end."""
        accounting = ["sacct", "-X", "-n", "-P", "-j", ",".join(ids), "-o", "JobID,State"]
        return [accounting, *(["scontrol", "--oneliner", "show", "job", job] for job in ids)]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        for line in printed.splitlines():
            if command[0] == "sacct":
                job, _, state = line.strip().partition("|")
            else:
                facts = dict(re.findall(r"(\w+)=(\S*)", line))
                job = facts.get("ArrayJobId") or facts.get("JobId", "")
                job += f"_[{facts['ArrayTaskId']}]" if "ArrayTaskId" in facts else ""
                state = facts.get("JobState", "")
            word = re.sub(r"[^A-Z_].*", "", state)  # also of `CANCELLED by 1000` and `COMPLETED+`
            states |= dict.fromkeys(_tasks(job), self.state_words.get(word, UNKNOWN))
        return states

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        return environ.get("SLURM_ARRAY_JOB_ID") or environ.get(self.job)


def _tasks(text: str) -> list[tuple[str, int | None]]:
    """The keys that `27`, `27_2` and `27_[0-1,4%2]` stand for."""
    job, _, tasks = text.partition("_")
    if not job.isdigit():
        return []
    if not tasks:
        return [(job, None)]
    spans = re.findall(r"(\d+)(?:-(\d+))?", tasks.partition("%")[0])
    return [(job, task) for first, last in spans for task in range(int(first), int(last or first) + 1)]
