"""Jobs that are submitted together: what they share, and what each one adds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from kava.cluster.presets import PRESETS
from kava.cluster.spec import Command, JobSpec, Resources, check_name, job_name, singles
from kava.cluster.submit import FOLDER, Submission


@dataclass(frozen=True)
class JobDefaults:
    """What all jobs of a submission share. `common` are fields of JobSpec."""

    resources: Resources
    name: str | None = None  # of the submission; default: the verb
    common: dict[str, Any] = field(default_factory=dict)

    def submission(self, verb: str, outputs: str, title: str, *jobs: dict[str, Any]) -> Submission:
        """`jobs` are fields of JobSpec; their `after` names labels, whose status files must say ok as well.

        The first job waits for the ids that --after names.
        """
        name = self.name or verb
        check_name("submission", name)
        folder = (PurePath(outputs) / FOLDER / name).as_posix()
        specs: dict[str, JobSpec] = {}
        for own in jobs:
            after = tuple(own.get("after", ()))
            fields = {"resources": self.resources, **self.common, **own}
            fields["needs"] = tuple(specs[label].needed() for label in after)
            fields["after"] = after or self.common.get("after", ())
            queue = job_name(title, own["label"] if len(jobs) > 1 else "")
            specs[own["label"]] = JobSpec(name=queue, folder=folder, **fields)
        return Submission(name, folder, tuple(specs.values()))

    def reading(self, label: str, after: Sequence[str], *commands: Sequence[str]) -> dict[str, Any]:
        """A job that only reads files: no GPU, few CPUs, and never more than the other jobs ask for."""
        most, few = self.resources, PRESETS["cpu"]
        mem = most.mem and min(most.mem, few.mem or most.mem)
        resources = replace(most, nodes=1, gpus=0, cpus=min(most.cpus, few.cpus), mem=mem, time=few.time)
        tasks = (tuple(Command(tuple(words)) for words in commands),)
        signal = min(self.common.get("signal", JobSpec.signal), (few.time or 0) // 2)  # its time limit is short
        return {"label": label, "tasks": tasks, "resources": resources, "after": after, "signal": signal}


def in_one_job(submission: Submission) -> Submission:
    """Everything in a single job, one command after the other; one that fails stops no later one."""
    specs = [single for spec in submission.jobs for single in (singles(spec) if spec.array is not None else [spec])]
    tasks = (tuple(command for spec in specs for command in spec.tasks[0]),)
    whole = replace(submission.jobs[0], label="all", name=job_name(submission.name), tasks=tasks, array=None, lists=())
    return replace(submission, jobs=(replace(whole, keep_going=True),))
