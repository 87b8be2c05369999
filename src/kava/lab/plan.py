"""What to run as data becomes jobs: one run, a recipe over several seeds, an experiment with all its members.

`kava seeds`, `kava suite` and `kava demo` run the jobs on this machine (run_local.py); `kava submit` makes a scheduler's
jobs of the same ones.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kava.config import Recipe, differing, load_recipe, parse_overrides, recipe_path, show
from kava.config.effects import without_effect
from kava.config.keys import nest
from kava.config.load import SHIPPED
from kava.config.text import write_file
from kava.config.trust import requests
from kava.errors import ConfigError, RunError
from kava.lab.run_local import Job
from kava.lab.suites import ablations, e1_e5, methods, phases
from kava.lab.suites.member import Suite, SuiteMember
from kava.outputs import Output, check_folder, check_outputs
from kava.registry import nearest
from kava.run_files import read_meta

SEEDS = (42, 123, 456)
ALL_SUITES = (e1_e5.SUITE, methods.SUITE, methods.EQUAL_PASSES, ablations.SUITE, phases.PHASES, phases.STAGES)
SUITES = {suite.name: suite for suite in ALL_SUITES}


@dataclass(frozen=True)
class RunSet:
    """What several runs have in common: a recipe with settings, seeds, and the flags of `kava seeds` and `kava suite`."""

    recipe: Recipe
    config: str  # the recipe's name or path in commands
    settings: Sequence[str]
    seeds: Sequence[int]
    datasets: Sequence[str] = ()  # none: the recipe's own
    quick_test: bool = False
    use_wandb: bool = False
    skip_train: bool = False
    skip_eval: bool = False
    trust_remote_code: bool = False

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(self.datasets or self.recipe.evaluation.datasets))

    @property
    def quick(self) -> list[str]:
        return ["--quick_test"] if self.quick_test else []

    @property
    def train_flags(self) -> list[str]:
        trust = ["--trust_remote_code"] if self.trust_remote_code else []
        return [*self.quick, *(["--use_wandb"] if self.use_wandb else []), *trust]

    def evaluation(self, sets: Sequence[str]) -> list[str]:
        """The flags of an evaluation; what is evaluated already stays."""
        trust = ["--trust_remote_code"] if requests(self.recipe, stored=True) else []  # of a student made here
        return [*(["--eval_dataset", *sets] if sets else []), "--missing", *self.quick, *trust]


@dataclass(frozen=True)
class SuitePlan:
    """An experiment's members and jobs; `refused` are the jobs that this recipe cannot have, and why."""

    suite: Suite
    runs: RunSet
    root: Path
    members: tuple[SuiteMember, ...]
    jobs: tuple[Job, ...]
    refused: dict[str, ConfigError]
    notes: tuple[str, ...] = ()  # on settings of all members that some do not have

    def waves(self) -> tuple[list[list[Job]], dict[str, ConfigError]]:
        """The jobs that can run at once, wave by wave, in the order of the members; and the members left out, and why."""
        jobs = {job.label: job for job in self.jobs if job.commands()}
        empty = ConfigError("--skip_train and --skip_eval leave nothing to submit")
        depth: dict[str, int] = {}
        waves: dict[int, list[Job]] = {}
        left_out: dict[str, ConfigError] = {}
        for member in self.members:
            labels = [f"{member.name}/seed_{seed}" for seed in self.runs.seeds]
            errors = [self.refused.get(label, empty) for label in labels if label not in jobs]
            if errors:
                left_out[member.name] = errors[0]
                continue
            depth[member.name] = depth.get(member.after, -1) + 1
            waves.setdefault(depth[member.name], []).extend(jobs[label] for label in labels)
        return [waves[level] for level in sorted(waves)], left_out


def suite_named(name: str) -> Suite:
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}", nearest(name, list(SUITES)))
    return SUITES[name]


def chosen(members: Sequence[SuiteMember], names: Sequence[str]) -> tuple[SuiteMember, ...]:
    """The members called `names`, in the suite's order; all of them where none is named."""
    known = [member.name for member in members]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown member {name!r}", nearest(name, known))
    return tuple(member for member in members if not names or member.name in names)


def suite_members(suite: Suite, runs: RunSet, names: Sequence[str]) -> tuple[SuiteMember, ...]:
    """The members called `names` of those that the recipe has, with those for the student's number of layers."""
    members = suite.members(runs.recipe)
    if not members:
        raise ConfigError(f"suite {suite.name} has no members for recipe {runs.config}", f"it needs {suite.needs}")
    if suite.by_layer is not None and runs.recipe.mixture.on:
        from kava.backbone.load import num_layers

        members = (*members, *suite.by_layer(runs.recipe, num_layers(runs.recipe.model)))
    return chosen(members, names)


def plan_run(
    label: str,
    config: str,
    folder: Path,
    seed: int,
    settings: Sequence[str],
    evaluations: Sequence[Sequence[str]],
    flags: Sequence[str] = (),
    after: str = "",
) -> Job:
    """One run: train it (an interrupted one is continued, a finished one left out), then evaluate its best checkpoint.

    `after` is the label of the job that must have succeeded before. The recipe is read now, before anything is started:
    a mistake costs seconds and not a night.
    """
    recipe = load_recipe(config, [*settings, f"system.seed={seed}"])
    finished = not flags and _is_finished(folder, recipe)
    return Job(
        label=label,
        folder=folder,
        train=() if finished else train_words(config, str(folder), str(seed), ["--quiet", *flags, *settings]),
        evaluate=tuple(evaluate_words(str(folder), ["--quiet", *words]) for words in evaluations),
        updates=0 if finished or "--quick_test" in flags else recipe.training.max_steps or 0,
        after=after,
    )


def train_words(config: str, folder: str, seed: str, more: Sequence[str]) -> tuple[str, ...]:
    return ("train", "--config", config, "--output_dir", folder, "--seed", seed, "--resume", "auto", *more)


def evaluate_words(folder: str, more: Sequence[str]) -> tuple[str, ...]:
    return ("evaluate", "--checkpoint_dir", f"{folder}/best_checkpoint", *more)


def _is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether this very run is finished; one with other settings is left to `kava train`, which refuses it."""
    stored = folder / "recipe.yaml"
    return stored.is_file() and bool(read_meta(folder).get("finished")) and not differing(load_recipe(stored), recipe)


def plan_seeds(runs: RunSet, root: Path) -> list[Job]:
    """A job per seed."""
    jobs = []
    for seed in runs.seeds:
        label, evaluations = f"seed_{seed}", [runs.evaluation(runs.sets)]
        jobs.append(plan_run(label, runs.config, root / label, seed, runs.settings, evaluations, runs.train_flags))
    return [job.without(train=runs.skip_train, evaluate=runs.skip_eval) for job in jobs]


def seed_template(runs: RunSet, root: str, seed: str) -> Job:
    """The job of a seed that is known when it runs: `seed` stands for it in every command."""
    folder = f"{root}/seed_{seed}"
    train = train_words(runs.config, folder, seed, [*runs.train_flags, *runs.settings])
    evaluation = evaluate_words(folder, runs.evaluation(runs.datasets))
    return Job(seed, Path(folder), train, (evaluation,)).without(train=runs.skip_train, evaluate=runs.skip_eval)


def plan_suite(
    suite: Suite, runs: RunSet, names: Sequence[str], output_dir: Path, recipe_folder: Path | None = None
) -> SuitePlan:
    """A job per seed and member of those called `names`; all members where none is named.

    The recipe with the settings that all members share is written into `recipe_folder`, by default the runs' folder.
    """
    members = suite_members(suite, runs, names)
    root = output_dir / (suite.line(runs.recipe) + ("_quick" if runs.quick_test else ""))
    shared = runs.config
    if recipe_folder is None:
        check_folder("--output_dir", root)
        check_outputs([Output(f"{suite.name}'s file", root / name) for name in (f"{suite.name}.yaml", "suite.json")])
    if runs.settings:
        shared = str(_write_shared_recipe((recipe_folder or root) / f"{suite.name}.yaml", runs))
    code_keys = requests(runs.recipe)  # typed again for each run, because a file cannot allow code to run
    typed = [f"{key}={json.dumps(value)}" for key, value in parse_overrides(runs.settings).items() if key in code_keys]
    jobs: list[Job] = []
    refused: dict[str, ConfigError] = {}
    for seed in runs.seeds:  # seeds outermost: a run that is stopped early leaves whole comparisons
        for member in members:
            label = f"{member.name}/seed_{seed}"
            try:
                after, start = _start(member, seed, root, members, runs.skip_train)
                if after in refused:
                    raise ConfigError(f"it begins where {after} ends, which broke")
                settings, evaluations = [*typed, *member.settings, *start], [_evaluation(member, runs)]
                jobs.append(plan_run(label, shared, root / label, seed, settings, evaluations, runs.train_flags, after))
            except ConfigError as error:
                refused[label] = error
    jobs = [job.without(train=runs.skip_train, evaluate=runs.skip_eval) for job in jobs]
    return SuitePlan(
        suite, runs, root, members, tuple(jobs), refused, tuple(_without_effect(suite, runs, shared, members))
    )


def _without_effect(suite: Suite, runs: RunSet, shared: str, members: Sequence[SuiteMember]) -> Iterator[str]:
    """A line about each setting of all members that some of them set themselves, or ignore."""
    recipes: dict[str, Recipe] = {}
    for member in members if runs.settings else ():
        try:
            recipes[member.name] = load_recipe(shared, member.settings)
        except ConfigError:
            continue  # a member that this recipe cannot have; `refused` says why
    for key, wanted in parse_overrides(runs.settings).items():
        if key in suite.derived:
            continue
        own = {member.name: parse_overrides(member.settings).get(key, wanted) for member in members}
        idle = [name for name, recipe in recipes.items() if own[name] != wanted or without_effect(recipe, {key: 1})]
        if idle:
            yield f"{key}={show(wanted)} has no effect on {', '.join(idle)}"


def _write_shared_recipe(path: Path, runs: RunSet) -> Path:
    """A recipe file with the settings that all members share. A member may switch off what they are about, as it may
    with those of a shipped recipe; on one command line that would be a setting without effect."""
    about = load_recipe(runs.config).about.model_dump()
    parent = recipe_path(runs.config)
    extends = runs.config if parent.parent == SHIPPED else str(parent.resolve())
    data = {"extends": extends, "about": about, **nest(parse_overrides(runs.settings))}
    write_file(path, data, "shared by all members")
    return path


def _start(
    member: SuiteMember, seed: int, root: Path, members: Sequence[SuiteMember], skip_train: bool
) -> tuple[str, tuple[str, ...]]:
    """The job that `member` waits for, and the setting that names that job's best checkpoint."""
    if not member.after:
        return "", ()
    best = root / member.after / f"seed_{seed}" / "best_checkpoint"
    if member.after not in [other.name for other in members] and not skip_train and not best.is_dir():
        missing = f"{member.name} begins where {member.after} ends, and there is no {best}"
        raise RunError(missing, f"add {member.after} to --members")
    return f"{member.after}/seed_{seed}", (f"training.start_from={best}",)


def _evaluation(member: SuiteMember, runs: RunSet) -> list[str]:
    words = runs.evaluation(runs.sets)
    words += ["--mode", member.mode] if member.mode != "latent" else []
    return [*words, "--losses"] if runs.recipe.explicit.enabled or member.mode == "latent" else words
