"""kava submit: a verb as jobs of a scheduler."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import OVERRIDES, show_result
from kava.console import tell
from kava.errors import ConfigError
from kava.registry import nearest
from kava.text_table import table

if TYPE_CHECKING:
    from kava.cluster.site_file import Site
    from kava.cluster.spec import Resources

# Folders and hub settings, for schedulers that do not pass the environment on. No token: others may read the scripts.
CARRIED = (
    "KAVA_PROJECT_ROOT", "KAVA_MODEL_PATH", "KAVA_DATA_PATH", "KAVA_CACHE_PATH", "KAVA_OUTPUT_PATH", "HF_HOME",
    "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
VERB_NAMES = ("train", "seeds", "suite", "extract", "distill", "evaluate")


def submit(
    ctx: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help=", ".join(VERB_NAMES) + "; then its own flags")],
    scheduler: Annotated[
        str | None, typer.Option(help="slurm, pbs, torque, sge, lsf, cobalt or local; default: the one of this machine")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="single (default), multi_gpu, ultra_large, multinode, cpu: resources of each task"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="nodes of each task")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of each node")] = None,
    mem: Annotated[str | None, typer.Option(help="memory of each node: 64G; 0: no request")] = None,
    time: Annotated[str | None, typer.Option(help="time limit of each task: 48:00:00, 48h, 2-00:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="partition or queue")] = None,
    account: Annotated[str | None, typer.Option(help="account or project")] = None,
    qos: Annotated[str | None, typer.Option(help="quality of service, where the scheduler has it")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="extract: number of tasks; default 100")] = None,
    one_job: Annotated[
        bool, typer.Option("--one_job", help="everything in one job, one command after another")
    ] = False,
    after: Annotated[list[str] | None, typer.Option(help="ids of jobs that must succeed first")] = None,
    signal: Annotated[int, typer.Option(min=10, help="seconds before the time limit to save and requeue")] = 120,
    no_requeue: Annotated[
        bool, typer.Option("--no_requeue", help="do not requeue jobs stopped at the time limit")
    ] = False,
    export: Annotated[
        list[str] | None, typer.Option(help="NAME=default: %NAME% in the command line becomes a variable of the script")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="this cluster's file; default: KAVA_SITE, else configs/kava_site.yaml")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the submission; default: the verb")] = None,
    log: Annotated[str, typer.Option(help="prefix of the jobs' output files")] = "logs/kava",
    dry_run: Annotated[bool, typer.Option("--dry_run", help="print the scripts, submit and write nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the record, as JSON")] = False,
) -> int:
    """Render, submit and remember: kava submit seeds --config llama1b_aug --partition gpu.

    seeds: per recipe an array over seeds and one aggregate after it; without --config all six recipes of the paper.
    suite: arrays over members and seeds, then the analysis. extract: an array over --shards, then a check of all hashes.
    train, distill: one job, over all its GPUs and nodes. Several GPUs: torchrun, once per node.

    Scripts, ids (jobs.json) and every task's status file lie in <outputs>/.jobs/<name>; kava jobs reads them. The site
    file holds what all jobs of a cluster need: scheduler, partition, account, qos, nodes, gpus, cpus, mem, time, setup
    (lines of shell), environment, directives (per scheduler), container, launcher, sge.
    """
    from kava.cli.submit_verbs import SubmitRequest, submissions
    from kava.cluster.detect import installed_scheduler
    from kava.cluster.jobs import refuse_twice
    from kava.cluster.plan import JobDefaults, in_one_job
    from kava.cluster.schedulers import scheduler_named
    from kava.cluster.site_file import find_site
    from kava.cluster.spec import check_ids, check_warning
    from kava.cluster.submit import adapted, check_places, fresh, preview, submit_all
    from kava.infer.checks import stored_recipe
    from kava.machine.detect import scheduler_of_job

    words = [str(word) for word in ctx.args]
    if verb not in VERB_NAMES:
        kind = "VERB comes first, not" if verb.startswith("-") else "no jobs are made of"
        raise ConfigError(f"kava submit: {kind} {verb!r}", nearest(verb, VERB_NAMES))
    if shards is not None and verb != "extract":
        raise ConfigError(f"--shards has no effect on kava submit {verb}", "leave it out: only extract has shards")
    check_ids(after or ())
    here = find_site(site, os.environ)
    sizes = {"nodes": nodes, "gpus": gpus, "cpus": cpus, "partition": partition, "account": account, "qos": qos}
    resources = _resources(preset, here, sizes, mem, time)
    if not no_requeue:
        check_warning(signal, resources.time)
    target_name = scheduler or here.scheduler or scheduler_of_job(os.environ) or installed_scheduler(os.environ)
    target = scheduler_named(target_name, here)
    carried = {} if here.portable else {name: os.environ[name] for name in CARRIED if os.environ.get(name)}
    common: dict[str, Any] = {
        "log": log,
        "after": tuple(after or ()),
        "signal": signal,
        "requeue": not no_requeue,
        "environment": tuple((carried | here.environment).items()),
        "path": "" if here.setup else str(Path(sys.executable).parent),  # without a site file: the same environment
        "directives": next((lines for name, lines in here.directives.items() if name == target.name), ()),
        "exported": tuple(_exported(text) for text in export or ()),
        **{name: getattr(here, name) for name in ("setup", "container", "launcher", "portable")},
    }
    own_flags = [flag for parameter in ctx.command.params for flag in parameter.opts]
    request = SubmitRequest(words, JobDefaults(resources, name, common), preset or "", shards or 100)
    planned = submissions(verb, request, own_flags)
    planned = [in_one_job(submission) for submission in planned] if one_job else planned
    ready = [adapted(submission if here.portable else fresh(submission), target) for submission in planned]
    for note in dict.fromkeys(note for submission in ready for note in submission.notes):
        tell(f"note: {note}")
    if dry_run:
        print("\n".join(preview(submission, target) for submission in ready), end="")
        return 0
    for submission in ready:
        check_places(submission)
        refuse_twice(submission)
        for folder in () if after else submission.students:  # a job that it waits for may make it
            stored_recipe(folder)
    records = submit_all(ready, target, ["kava", *sys.argv[1:]])
    rows = [
        [record["name"], job["label"], job["id"], str(job["tasks"] or 1), ", ".join(job["after"]) or "-", job["script"]]
        for record in records
        for job in record["jobs"]
    ]
    text = table(rows, ("submission", "job", "id", "tasks", "after", "script"))
    show_result(records, f"{text}\n\nkava jobs shows how they do; kava jobs --cancel ends them", quiet)
    return 0


def _resources(
    preset: str | None, site: "Site", sizes: dict[str, Any], mem: str | None, time: str | None
) -> "Resources":
    """Flags over the site file over the preset; a preset named by its flag goes over the site file's sizes."""
    from kava.cluster.presets import preset as preset_named
    from kava.cluster.spec import parse_mem, parse_time

    flags = {key: value for key, value in sizes.items() if value is not None}
    for name, text, parse in (("mem", mem, parse_mem), ("time", time, parse_time)):
        flags |= {} if text is None else {name: None if text == "0" else parse(text)}
    keep = ("nodes", "gpus", "cpus", "mem", "time") if preset else ()
    return replace(site.over(preset_named(preset or "single"), keep), **flags)


def _exported(text: str) -> tuple[str, str]:
    name, equals, default = text.partition("=")
    if not equals:
        raise ConfigError(f"--export {text}: no default", "write NAME=default")
    return name, default


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("submit", context_settings={"help_option_names": ["--help", "-h"], **OVERRIDES})(submit)
