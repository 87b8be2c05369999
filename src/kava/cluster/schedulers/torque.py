"""Torque: PBS with other words for nodes and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from kava.cluster.schedulers.base import States
from kava.cluster.schedulers.pbs import Pbs, job_and_task, state_of
from kava.cluster.spec import JobSpec
from kava.errors import RunError


class Torque(Pbs):
    name = "torque"
    index = "PBS_ARRAYID"
    least = 1
    no_qos = ""

    def header(self, spec: JobSpec) -> list[str]:
        resources = spec.resources
        nodes = f"nodes={resources.nodes}:ppn={resources.cpus}" + (f":gpus={resources.gpus}" if resources.gpus else "")
        lines = [f"-N {spec.name}", f"-l {nodes}"]
        lines += [f"-l mem={resources.mem * resources.nodes}mb"] if resources.mem else []  # of the whole job
        lines += [f"-l qos={resources.qos}"] if resources.qos else []
        lines += self._limits(spec)
        lines += [f"-t 0-{spec.array - 1}"] if spec.array is not None else []
        return [*lines, f"-o {spec.log}_$PBS_JOBID.out", f"-e {spec.log}_$PBS_JOBID.err"]

    def _wait(self, after: Sequence[tuple[str, bool]]) -> str:
        arrays = [job for job, is_array in after if is_array]
        others = [job for job, is_array in after if not is_array]
        parts = [f"afterokarray:{':'.join(arrays)}"] if arrays else []
        return ",".join([*parts, *([f"afterok:{':'.join(others)}"] if others else [])])

    def states_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [["qstat", "-x", "-t", *ids]]

    def parse_states(self, command: Sequence[str], printed: str) -> States:
        states: States = {}
        if not printed.strip():
            return states
        try:
            jobs = ElementTree.fromstring(printed)
        except ElementTree.ParseError as error:
            raise RunError(f"qstat -x printed no XML ({error})") from error
        for job in jobs.iter("Job"):
            code = job.findtext("exit_status")
            state = state_of(job.findtext("job_state", ""), None if code is None else int(code))
            states[job_and_task(job.findtext("Job_Id", ""))] = state
        return states
