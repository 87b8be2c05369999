"""Cobalt: whole nodes, no arrays, no warning before the time limit, nothing put back into the queue."""

from collections.abc import Sequence
from pathlib import Path

from kava.cluster.schedulers.base import UNKNOWN, Scheduler, States, words_for_states
from kava.cluster.spec import JobSpec


class Cobalt(Scheduler):
    name = "cobalt"
    prefix = "#COBALT"
    lines = ("--jobname {name}", "-n {nodes}", "-t {minutes}", "-q {partition}", "-A {account}", "-O {file}{name}")
    no_qos = "name the queue with --partition"
    waits = ("--dependencies", "{}")
    state_command = ("qstat", "--header=JobID:State")
    state_words = words_for_states(
        pending="queued starting dep_hold user_hold admin_hold maxrun_hold",
        running="running exiting killing",
        done="done",
        failed="dep_fail",
    )
    job = "COBALT_JOBID"
    warns = False
    head = ('read -r head <"$COBALT_NODEFILE"',)
    launcher = 'mpirun -f "$COBALT_NODEFILE" -n {nodes} -ppn 1'

    def submit(self, script: Path, spec: JobSpec, after: Sequence[tuple[str, bool]]) -> list[str]:
        return [*super().submit(script, spec, after)[:-1], "--mode", "script", str(script)]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        rows = [line.split() for line in printed.splitlines()]
        rows = [row for row in rows if len(row) == 2 and row[0].isdigit()]
        return {(job, None): self.state_words.get(word.lower(), UNKNOWN) for job, word in rows}
