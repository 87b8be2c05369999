"""Grid Engine and its descendants. It has no `afterok`: dependent jobs read the status files when they start."""

import re
from collections.abc import Sequence
from typing import Any

from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, Scheduler, States
from kava.cluster.spec import JobSpec, clock
from kava.errors import ConfigError

LETTERS = {"E": FAILED, "d": CANCELLED, "r": RUNNING, "t": RUNNING}  # in this order


class GridEngine(Scheduler):
    name = "sge"
    prefix = "#$"
    lines = (
        "-N {name}", "-S /bin/bash", "-cwd", "-pe {pe} {slots}", "-l {gpu}={gpus}", "-l {memory}={share}M",
        "-l h_rt={walltime}", "-l s_rt={soft}", "-q {partition}", "-P {account}", "-t {tasks}", "-o {file}.out",
        "-e {file}.err", "-notify", "{rerun}",
    )  # fmt: skip
    unique = ("$JOB_ID", "$JOB_ID.$TASK_ID")
    no_qos = "name the queue with --partition, or write a directive into the site file"
    submit_command = ("qsub", "-terse")
    waits = ("-hold_jid", "{}")
    between = ","
    id_pattern = r"(?m)^\s*([^.\s]+).*\s*\Z"  # `-terse` prints 12 or, for an array, 12.1-3:1
    job = "JOB_ID"
    index = "SGE_TASK_ID"
    first = 1
    home = "SGE_O_WORKDIR"
    has_afterok = False
    refused = 100  # the job is shown in error and keeps those held that wait for it
    keeps_refused = True
    requeue_code = 99
    head = ('read -r head _ <"$PE_HOSTFILE"',)

    def values(self, spec: JobSpec) -> dict[str, Any]:
        """Adds the site's names for GPUs, memory and slots, and the time of USR1, after which KILL follows."""
        from kava.cluster.site_file import Site

        resources, site = spec.resources, (self.site or Site()).sge
        key, slots = "pe" if resources.nodes == 1 else "pe_nodes", resources.cpus * resources.nodes
        pe = getattr(site, key) if slots > 1 else None
        if slots > 1 and pe is None:
            raise ConfigError(
                f"sge: {resources.nodes} nodes with {resources.cpus} CPUs need the name of a parallel environment",
                f"qconf -spl lists them; put sge.{key} into the site file",
            )
        names = {"pe": pe, "gpu": site.gpu or None, "memory": site.memory or None}
        share = resources.mem and resources.mem // (resources.cpus if site.memory_per_slot else 1)
        soft = clock(spec.stop_after) if spec.stop_after else None
        return super().values(spec) | names | {"slots": slots, "share": share, "soft": soft}

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Ended jobs, then those in the queue: a job that was put back is in both."""
        return [*(["qacct", "-j", job] for job in ids), ["qstat"]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        return _ended(printed) if command[0] == "qacct" else _queued(printed)


def _ended(printed: str) -> States:
    """The blocks of qacct, oldest first; failed 100 is what qdel leaves."""
    states: States = {}
    for block in re.split(r"(?m)^=+$", printed):
        facts = {words[0]: words[1] for line in block.splitlines() if len(words := line.split()) > 1}
        if "jobnumber" not in facts:
            continue
        task = facts.get("taskid", "")
        fine = facts.get("exit_status") == "0" and facts.get("failed") == "0"
        state = DONE if fine else CANCELLED if facts.get("failed") == "100" else FAILED
        states[facts["jobnumber"], int(task) - 1 if task.isdigit() else None] = state
    return states


def _queued(printed: str) -> States:
    """The lines of qstat: id, priority, name, user, state, two words of time, queue, slots, tasks."""
    states: States = {}
    for line in printed.splitlines():
        words = line.split()
        if len(words) < 8 or not words[0].isdigit():
            continue
        state = next((state for letter, state in LETTERS.items() if letter in words[4]), PENDING)
        states |= {(words[0], task): state for task in _tasks(words)}
    return states


def _tasks(words: Sequence[str]) -> list[int | None]:
    """The tasks of `1-3:1`, `1,3` or `2` after the slots, counted from 1; a job that is no array has nothing there."""
    text = words[-1] if words[-2].isdigit() and re.fullmatch(r"[\d,:-]+", words[-1]) else ""
    tasks: list[int | None] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition(":")[0].partition("-")
        tasks += range(int(first) - 1, int(last or first))
    return tasks or [None]
