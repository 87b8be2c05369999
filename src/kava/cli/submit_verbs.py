"""The jobs that `kava submit` makes of a verb's command line, which has the same flags as the verb itself."""

import difflib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from kava.cli.list_flags import spread
from kava.cli.seeds import runs_of, seed_runs, short_names
from kava.cli.submit_check import check, check_job, distilled, parsed
from kava.cluster.plan import JobDefaults
from kava.cluster.presets import SIZES
from kava.cluster.spec import INDEX, Command, filled
from kava.cluster.submit import Submission
from kava.config import Recipe
from kava.console import tell
from kava.errors import ConfigError
from kava.lab.plan import plan_suite, seed_template, suite_named
from kava.lab.run_local import Job

PAPER = ("llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl")
SEED = "SEED"


@dataclass(frozen=True)
class SubmitRequest:
    """The words after `kava submit VERB`, and what submit's own flags say."""

    words: list[str]
    defaults: JobDefaults
    preset: str
    shards: int
    values: dict[str, str] = field(default_factory=dict)  # of the variables that --export names
    scratch: Path = Path()  # a temporary folder

    def filled(self, words: Sequence[str]) -> list[str]:
        return [filled(word, self.values) for word in words]


def submissions(verb: str, request: SubmitRequest, own_flags: Sequence[str]) -> list[Submission]:
    """The submissions of a verb, with every command checked. `own_flags` are submit's, for hints."""
    values = dict(request.defaults.common["exported"])
    for name in (INDEX, SEED):
        if name not in values and any(f"%{name}%" in word for word in request.words):
            raise ConfigError(f"%{name}% is a task's own value", f"write it otherwise, or add --export {name}=...")
    if "CONFIG" in values:
        values["CONFIG_NAME"] = values["CONFIG"].rpartition("/")[2].removesuffix(".yaml")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            planned = VERBS[verb](replace(request, values=values, scratch=Path(scratch)))
        except ConfigError as error:
            flag = re.fullmatch(r"unknown flag '(--\w+)'", error.message)
            known = [*own_flags, *re.findall(r"'(--\w+)'", error.hint or "")]
            close = difflib.get_close_matches(flag[1], known, n=1) if flag else []
            raise ConfigError(error.message, f"did you mean {close[0]!r}?" if close else error.hint) from error
        for submission in planned:
            written = {name: str(Path(scratch) / Path(name).name) for name, _ in submission.files}
            for spec in submission.jobs:
                check_job(spec, values, written)
    return planned


def take(words: Sequence[str], *flags: str) -> tuple[list[str], list[str]]:
    """The values of a flag, and the words without it."""
    glued = spread(words, flags, settings=True)
    own = [word for word in glued if word.partition("=")[0] in flags]
    return [word.partition("=")[2] for word in own if "=" in word], [word for word in glued if word not in own]


def _value(words: Sequence[str], *flags: str) -> str | None:
    values, _ = take(words, *flags)
    if len(values) > 1:
        raise ConfigError(f"{flags[0]} takes one value, there are {len(values)}: {' '.join(values)}")
    return values[0] if values else None


def _name_and_folder(config: str | None, recipe: Recipe, ending: str) -> tuple[str, str]:
    """How folders are called, by the recipe, which may be a variable of the script; and the folder with this ending."""
    name = "%CONFIG_NAME%" if config == "%CONFIG%" else recipe.about.name or "run"
    return name, f"{os.environ.get('KAVA_OUTPUT_PATH') or 'outputs'}/{name}_{ending}"


def train(request: SubmitRequest) -> list[Submission]:
    recipe = check(["train", *request.filled(request.words)])
    assert recipe is not None  # --config is required
    return [_training("train", request, recipe, [])]


def distill(request: SubmitRequest) -> list[Submission]:
    sizes = dict(SIZES.get(request.preset, {}))
    recipe = distilled(parsed("distill", request.filled(request.words)), sizes)
    settings = [f"{key}={value}" for key, value in sizes.items()]
    note = f"preset {request.preset} sets {' '.join(settings)}"
    return [replace(_training("distill", request, recipe, settings), notes=(note,) if settings else ())]


def _training(verb: str, request: SubmitRequest, recipe: Recipe, settings: list[str]) -> Submission:
    """One training on all GPUs; a job that is put back into the queue continues it."""
    seed = _value(request.words, "--seed") or recipe.system.seed
    quick = "_quick" if parsed(verb, request.filled(request.words)).params["quick_test"] else ""
    name, folder = _name_and_folder(_value(request.words, "--config"), recipe, f"seed_{seed}{quick}")
    output, (_, rest) = _value(request.words, "--output_dir") or folder, take(request.words, "--output_dir")
    resume = [] if take(rest, "--resume")[0] else ["--resume", "auto"]
    words = ("kava", verb, *rest, *resume, "--output_dir", output, *settings)
    job = {"label": verb, "tasks": ((Command(words, spread=True),),)}
    return request.defaults.submission(verb, output, f"{verb}-{request.filled([name])[0]}", job)


def evaluate(request: SubmitRequest) -> list[Submission]:
    checkpoint = parsed("evaluate", request.filled(request.words)).params["checkpoint"]
    run = PurePath(str(_value(request.words, "--checkpoint_dir", "--checkpoint")))
    run = run.parent if run.name == "best_checkpoint" else run
    job = {"label": "evaluate", "tasks": ((Command(("kava", "evaluate", *request.words)),),)}
    submission = request.defaults.submission("evaluate", run.as_posix(), f"evaluate-{run.name}", job)
    students = () if request.defaults.common["after"] else (str(checkpoint),)  # a job before it may make the student
    return [replace(submission, students=students)]


def extract(request: SubmitRequest) -> list[Submission]:
    """An array, a task per share of the shards, and a check of all hashes."""
    if take(request.words, "--shard")[0]:
        raise ConfigError("kava submit extract gives each task its --shard i/n", "say how many: --shards n")
    check(["extract", *request.filled(request.words)])
    store = str(_value(request.words, "--output_dir"))
    words = ("kava", "extract", *request.words, "--shard", f"%{INDEX}%/{request.shards}")
    write = {"label": "write", "tasks": ((Command(words),),), "array": request.shards}
    verify = request.defaults.reading("verify", ["write"], ["kava", "extract", "--output_dir", store, "--verify"])
    return [request.defaults.submission("extract", store, f"extract-{PurePath(store).name}", write, verify)]


def seeds(request: SubmitRequest) -> list[Submission]:
    configs, rest = take(request.words, "--config")
    if len(configs) > 1 and take(rest, "--output_dir")[0]:
        raise ConfigError("--output_dir is for one recipe", "several go to outputs/<recipe>_multi_seed each")
    for config in (config for config in dict.fromkeys(configs) if configs.count(config) > 1):
        tell(f"note: --config names {config} more than once: it is submitted once")
    return [_seeds_of(config, rest, request) for config in dict.fromkeys(configs or PAPER)]


def _seeds_of(config: str, rest: list[str], request: SubmitRequest) -> Submission:
    """An array, a task per seed (%SEED% in its commands), and the aggregate when all of them went well."""
    context = parsed("seeds", request.filled(["--config", config, *rest]))
    if context.params["jobs"] != 1:
        raise ConfigError("--jobs: every seed is a task of its own here", "leave it out")
    runs, model_name = seed_runs(context), context.params["model_name"]
    name, folder = _name_and_folder(config, runs.recipe, "multi_seed" + ("_quick" if runs.quick_test else ""))
    root = _value(rest, "--output_dir") or folder
    job = seed_template(replace(runs, config=config), root, f"%{SEED}%")
    if not job.commands():
        raise ConfigError("--skip_train and --skip_eval leave nothing to submit", "kava aggregate needs no scheduler")
    lists = ((SEED, tuple(str(seed) for seed in runs.seeds)),)
    train = {"label": "train", "tasks": (_commands(job),), "array": len(runs.seeds), "lists": lists}
    words = ["kava", "aggregate", "--seed_dirs", *(f"{root}/seed_{seed}" for seed in runs.seeds), "--config_name", name]
    words += ["--model_name", model_name] if model_name else []
    words += ["--datasets", *short_names(list(runs.datasets))] if runs.datasets else []
    words += runs.quick
    words += [f"--output_{kind}={root}/aggregated_results.{kind}" for kind in ("json", "yaml")]
    aggregate = [] if runs.skip_eval else [request.defaults.reading("aggregate", ["train"], words)]
    return request.defaults.submission("seeds", root, request.filled([name])[0], train, *aggregate)


def suite(request: SubmitRequest) -> list[Submission]:
    """Arrays one after the other, a task per member and seed, and what reads all of them."""
    context = parsed("suite", request.words)
    flags = context.params
    if flags["jobs"] != 1 or flags["list_"] or not flags["name"]:
        problem = "kava submit suite NAME takes neither --jobs nor --list"
        raise ConfigError(problem, "kava suite --list shows the suites")
    runs = runs_of(context)
    plan = plan_suite(suite_named(flags["name"]), runs, flags["members"] or [], flags["output_dir"], request.scratch)
    scratch_recipe, recipe_file = request.scratch / f"{plan.suite.name}.yaml", plan.root / f"{plan.suite.name}.yaml"
    waves, refused = plan.waves()
    if refused and flags["members"]:
        raise next(iter(refused.values()))
    jobs: list[dict[str, Any]] = []
    for wave in waves:
        tasks = tuple(_commands(job, {str(scratch_recipe): str(recipe_file)}) for job in wave)
        after = [jobs[-1]["label"]] if jobs else []
        label = f"train-{chr(ord('a') + len(jobs))}" if jobs else "train"
        jobs.append({"label": label, "tasks": tasks, "array": len(tasks), "after": after})
    possible = [member.name for member in plan.members if member.name not in refused]
    words = ["kava", "suite", plan.suite.name, "--config", runs.config, "--seeds", *map(str, runs.seeds)]
    words += ["--members", *possible, "--output_dir", str(flags["output_dir"]), "--datasets", *runs.sets]
    commands = [[*words, "--skip_train", "--skip_eval", *runs.quick, *runs.settings]]
    if plan.suite.name in ("e1-e5", "methods", "methods-passes"):
        commands.append(["kava", "analyze", "--output_base", str(plan.root), *(plan.suite.analyze or ())])
    analyze = request.defaults.reading("analyze", [job["label"] for job in jobs], *commands)
    title = f"{plan.suite.name}-{PurePath(runs.config).stem}"
    submission = request.defaults.submission("suite", plan.root.as_posix(), title, *jobs, analyze)
    notes = (*plan.notes, *(f"left out: {name}: {error.message}" for name, error in refused.items()))
    files = ((str(recipe_file), scratch_recipe.read_text(encoding="utf-8")),) if runs.settings else ()
    return [replace(submission, notes=notes, files=files)]


def _commands(job: Job, renamed: dict[str, str] | None = None) -> tuple[Command, ...]:
    """The job's training on all GPUs, then its evaluations on one."""
    commands = []
    for words in job.commands():
        loud = [(renamed or {}).get(word, word) for word in words if word != "--quiet"]
        commands.append(Command(("kava", *loud), spread=words is job.train))
    return tuple(commands)


VERBS: dict[str, Callable[[SubmitRequest], list[Submission]]] = {
    verb.__name__: verb for verb in (train, seeds, suite, extract, distill, evaluate)
}
