"""PBS Pro and OpenPBS; and Torque, which is PBS with other words for nodes and arrays."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from kava.cluster.schedulers.base import (
    CANCELLED,
    DONE,
    FAILED,
    UNKNOWN,
    Scheduler,
    States,
    printed_json,
    words_for_states,
)
from kava.cluster.spec import JobSpec
from kava.errors import RunError

KILLED = 256  # exit codes from here on are signals
LIMITS = ("-l walltime={walltime}", "-q {partition}", "-A {account}", "{rerun}")


class Pbs(Scheduler):
    name = "pbs"
    prefix = "#PBS"
    lines: ClassVar[tuple[str, ...]] = (
        *("-N {name}", "-l select={nodes}:ncpus={cpus}{more}:mpiprocs=1", "-l place={place}"),
        *(*LIMITS, "-J {tasks}", "-o {folder}/", "-e {folder}/"),  # a folder: files are called by job id, tasks apart
    )
    no_qos = "name the queue with --partition, or write a directive into the site file"
    waits = ("-W", "depend=afterok:{}")
    state_command: ClassVar[tuple[str, ...]] = ("qstat", "-x", "-t", "-f", "-F", "json")
    state_words = words_for_states(pending="Q H W T S U", running="R E B", done="F X C")
    job = "PBS_JOBID"
    index = "PBS_ARRAY_INDEX"
    least = 2
    home = "PBS_O_WORKDIR"
    warns = False
    requeues = ("qrerun",)
    head = ('read -r head <"$PBS_NODEFILE"',)
    hold = ("-h",)
    release = "qrls"

    def values(self, spec: JobSpec) -> dict[str, Any]:
        resources = spec.resources
        more = f":ngpus={resources.gpus}" if resources.gpus else ""
        more += f":mem={resources.mem}mb" if resources.mem else ""
        place = "scatter" if resources.nodes > 1 else None
        return super().values(spec) | {"more": more, "place": place, "folder": Path(spec.log).parent.as_posix()}

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        jobs = printed_json(printed).get("Jobs", {})
        return dict(
            self.key_and_state(name, facts.get("job_state"), facts.get("Exit_status")) for name, facts in jobs.items()
        )

    def key_and_state(self, name: str, letter: str | None, code: Any) -> tuple[tuple[str, int | None], str]:
        """((123[].server, 2), state) of 123[2].server, by qstat's letter; for a job that ended, by its exit code."""
        task = re.search(r"\[(\d+)\]", name)
        state = self.state_words.get((letter or "")[:1], UNKNOWN)
        if state == DONE and int(code or 0):
            state = CANCELLED if int(code) >= KILLED else FAILED
        return (self.id_of({self.job: name}) or "", int(task[1]) if task else None), state

    def id_of(self, environ: Mapping[str, str]) -> str | None:
        """The array's id: 123[].server in a task whose own id is 123[2].server."""
        return re.sub(r"\[\d+\]", "[]", environ.get(self.job, "")) or None


class Torque(Pbs):
    name = "torque"
    lines = (
        *("-N {name}", "-l nodes={nodes}:ppn={cpus}{more}", "-l mem={mem}mb", "-l qos={qos}"),
        *(*LIMITS, "-t {tasks}", "-o {file}.out", "-e {file}.err"),
    )
    unique = ("$PBS_JOBID", "$PBS_JOBID")
    no_qos = ""
    waits = ("-W", "depend={}")
    state_command = ("qstat", "-x", "-t")
    index = "PBS_ARRAYID"
    least = 1

    def values(self, spec: JobSpec) -> dict[str, Any]:
        resources = spec.resources
        memory = resources.mem * resources.nodes if resources.mem else None  # of the whole job
        more = f":gpus={resources.gpus}" if resources.gpus else ""
        return super().values(spec) | {"more": more, "mem": memory}

    def ids_of(self, after: Sequence[tuple[str, bool]]) -> str:
        arrays, others = (":".join(job for job, is_array in after if is_array == kind) for kind in (True, False))
        return ",".join([f"afterokarray:{arrays}"] * bool(arrays) + [f"afterok:{others}"] * bool(others))

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        try:
            jobs = ElementTree.fromstring(printed).iter("Job") if printed.strip() else ()
        except ElementTree.ParseError as error:
            raise RunError(f"qstat -x printed no XML ({error})") from error
        return dict(
            self.key_and_state(job.findtext("Job_Id", ""), job.findtext("job_state"), job.findtext("exit_status"))
            for job in jobs
        )
