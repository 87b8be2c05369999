"""Grid Engine and its descendants. It has no `afterok`: dependent jobs read the status files when they start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kava.cluster.schedulers.base import CANCELLED, DONE, FAILED, PENDING, RUNNING, Scheduler, States
from kava.cluster.spec import JobSpec, clock
from kava.errors import ConfigError


class GridEngine(Scheduler):
    name = "sge"
    prefix = "#$"
    job = "JOB_ID"
    index = "SGE_TASK_ID"
    first = 1
    home = "SGE_O_WORKDIR"
    has_afterok = False
    refused = 100  # the job is shown in error and keeps those held that wait for it
    keeps_refused = True
    requeue_code = 99
    head = ('read -r head _ <"$PE_HOSTFILE"',)
    no_qos = "name the queue with --partition, or write a directive into the site file"
    id_pattern = r"(?m)^\s*([^.\s]+).*\s*\Z"  # `-terse` prints 12 or, for an array, 12.1-3:1

    def header(self, spec: JobSpec) -> list[str]:
        from kava.cluster.site_file import GridEngineSite

        resources, site = spec.resources, self.site.sge if self.site else GridEngineSite()
        lines = [f"-N {spec.name}", "-S /bin/bash", "-cwd"]
        slots = resources.cpus * resources.nodes
        pe = site.pe if resources.nodes == 1 else site.pe_nodes
        if slots > 1 and pe is None:
            key = "pe" if resources.nodes == 1 else "pe_nodes"
            raise ConfigError(
                f"sge: {resources.nodes} nodes with {resources.cpus} CPUs need the name of a parallel environment",
                f"qconf -spl lists them; put sge.{key} into the site file",
            )
        lines += [f"-pe {pe} {slots}"] if slots > 1 else []
        lines += [f"-l {site.gpu}={resources.gpus}"] if resources.gpus and site.gpu else []
        if resources.mem and site.memory:
            lines += [f"-l {site.memory}={resources.mem // (resources.cpus if site.memory_per_slot else 1)}M"]
        if resources.time:
            soft = max(60, resources.time - spec.signal)  # USR1; then KILL
            lines += [f"-l h_rt={clock(resources.time)}", f"-l s_rt={clock(soft)}"]
        lines += [f"-q {resources.partition}"] if resources.partition else []
        lines += [f"-P {resources.account}"] if resources.account else []
        lines += [f"-t 1-{spec.array}"] if spec.array is not None else []
        unique = "$JOB_ID.$TASK_ID" if spec.array is not None else "$JOB_ID"
        lines += [f"-o {spec.log}_{unique}.out", f"-e {spec.log}_{unique}.err"]
        return [*lines, "-notify", f"-r {'y' if spec.requeue else 'n'}"]

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        wait = ["-hold_jid", ",".join(job for job, _ in after)] if after else []
        return ["qsub", "-terse", *wait, str(script)]

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
        letters = words[4]
        state = (
            FAILED if "E" in letters else CANCELLED if "d" in letters else RUNNING if "r" in letters or "t" in letters
            else PENDING
        )  # fmt: skip
        for task in _tasks(words):
            states[words[0], task] = state
    return states


def _tasks(words: Sequence[str]) -> list[int | None]:
    """The tasks of `1-3:1`, `1,3` or `2` after the slots, counted from 1; a job that is no array has nothing there."""
    text = words[-1] if words[-2].isdigit() and re.fullmatch(r"[\d,:-]+", words[-1]) else ""
    tasks: list[int | None] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition(":")[0].partition("-")
        tasks += range(int(first) - 1, int(last or first))
    return tasks or [None]
