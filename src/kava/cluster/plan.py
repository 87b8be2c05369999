"""A verb as jobs: seeds are an array and an aggregate behind it, a suite is arrays in waves and an analysis, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from kava.cluster.presets import PRESETS
from kava.cluster.spec import INDEX, NAME, Command, JobSpec, Resources, job_name, singles
from kava.cluster.submit import FOLDER, Submission
from kava.errors import ConfigError

PAPER = ("llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl")
SEED = "SEED"


@dataclass(frozen=True)
class Base:
    """What all jobs of a submission share. `common` are fields of JobSpec."""

    resources: Resources
    name: str | None = None  # of the submission; default: the verb
    common: dict[str, Any] = field(default_factory=dict)

    @property
    def cpu(self) -> Resources:
        """For what only reads files: little, and never more than the other jobs ask for."""
        asked, few = self.resources, PRESETS["cpu"]
        mem = asked.mem and min(asked.mem, few.mem or asked.mem)
        return replace(
            few,
            cpus=min(asked.cpus, few.cpus),
            mem=mem,
            partition=asked.partition,
            account=asked.account,
            qos=asked.qos,
        )

    def submission(self, verb: str, outputs: str, title: str, jobs: Sequence[dict[str, Any]]) -> Submission:
        """`jobs` are fields of JobSpec; `after` gives labels, whose status files are needed as well.

        A first job waits for what --after named.
        """
        name = self.name or verb
        if not NAME.fullmatch(name):
            raise ConfigError(f"submission {name!r} is not a name", "letters, digits, . _ - and a letter first")
        folder = (PurePath(outputs) / FOLDER / name).as_posix()
        found: dict[str, JobSpec] = {}
        for fields in jobs:
            after = tuple(fields.get("after", ()))
            given = {"resources": self.resources, **self.common, **fields}
            given["needs"] = tuple(found[label].needed() for label in after)
            given["after"] = after or self.common.get("after", ())
            queue = job_name(title, fields["label"] if len(jobs) > 1 else "")
            found[fields["label"]] = JobSpec(name=queue, folder=folder, **given)
        return Submission(name, folder, tuple(found.values()))


def run_commands(train: Sequence[str], evaluate: Sequence[str]) -> tuple[Command, ...]:
    """A training on all GPUs, then an evaluation on one; an empty one is left out."""
    both = (Command(tuple(train), spread=True), Command(tuple(evaluate)))
    return tuple(command for command in both if command.words)


def over_seeds(
    base: Base, title: str, root: str, seeds: Sequence[int], commands: tuple[Command, ...], aggregate: Sequence[str]
) -> Submission:
    """An array, a task per seed (%SEED% in its commands), and the aggregate when all of them went well."""
    train = {
        "label": "train",
        "tasks": (commands,),
        "array": len(seeds),
        "lists": ((SEED, tuple(str(seed) for seed in seeds)),),
    }
    then = _reading("aggregate", base, [Command(tuple(aggregate))], ["train"])
    return base.submission("seeds", root, title, [train, *([then] if aggregate else [])])


def in_waves(
    base: Base, title: str, root: str, waves: Sequence[Sequence[tuple[Command, ...]]], end: Sequence[Command]
) -> Submission:
    """Arrays one after the other, each task with commands of its own, and what reads all of them."""
    jobs: list[dict[str, Any]] = []
    for number, tasks in enumerate(waves):
        label = "train" if not number else f"train-{chr(ord('a') + number)}"
        after = [jobs[-1]["label"]] if jobs else []
        jobs.append({"label": label, "tasks": tuple(tasks), "array": len(tasks), "after": after})
    end_job = _reading("analyze", base, end, [job["label"] for job in jobs])
    return base.submission("suite", root, title, [*jobs, end_job])


def in_shards(base: Base, title: str, store: str, shards: int, words: Sequence[str], end: Sequence[str]) -> Submission:
    """An array, a task per share of the shards, and a look at all hashes."""
    command = Command((*words, "--shard", f"%{INDEX}%/{shards}"))
    write = {"label": "write", "tasks": ((command,),), "array": shards}
    return base.submission("extract", store, title, [write, _reading("verify", base, [Command(tuple(end))], ["write"])])


def alone(base: Base, verb: str, title: str, outputs: str, words: Sequence[str], spread: bool) -> Submission:
    """One job of one command."""
    return base.submission(verb, outputs, title, [{"label": verb, "tasks": ((Command(tuple(words), spread),),)}])


def in_one_job(submission: Submission) -> Submission:
    """Everything in a single job, one thing after the other; what fails stops nothing."""
    specs = [one for spec in submission.jobs for one in (singles(spec) if spec.array is not None else [spec])]
    commands = tuple(command for spec in specs for command in spec.tasks[0])
    first = submission.jobs[0]
    whole = replace(
        first, label="all", name=job_name(submission.name), tasks=(commands,), array=None, lists=(), keep_going=True
    )
    return replace(submission, jobs=(whole,))


def _reading(label: str, base: Base, commands: Sequence[Command], after: Sequence[str]) -> dict[str, Any]:
    """A job that needs no GPU."""
    return {"label": label, "tasks": (tuple(commands),), "resources": base.cpu, "after": list(after)}
