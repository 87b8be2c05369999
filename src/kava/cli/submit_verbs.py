"""What `kava submit` makes of each verb's command line: the same flags as the verb itself, then jobs (kava/cluster/plan.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from kava.cli.common import check_flags
from kava.cli.submit_check import check, distilled, parsed
from kava.cluster import plan
from kava.cluster.presets import SIZES
from kava.cluster.spec import Command, filled
from kava.cluster.submit import Submission
from kava.config import load_recipe
from kava.errors import ConfigError
from kava.lab.plan import Member, chosen, job, suite_named

_FLAG = re.compile(r"--[A-Za-z]")
_SETTING = re.compile(r"[a-z]\w*(\.\w+)+=.*", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """A verb's words behind `kava submit VERB`, and what submit's own flags say."""

    words: list[str]
    base: plan.Base
    values: dict[str, str]  # of the variables that --export names
    preset: str
    shards: int
    scratch: Path  # a folder that is gone afterwards

    def filled(self, words: Sequence[str]) -> list[str]:
        return [filled(word, self.values) for word in words]


def take(words: Sequence[str], *flags: str) -> tuple[list[str], list[str]]:
    """The values behind a flag, and the words without it. Values end at the next flag or setting."""
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for word in words:
        name, equals, value = word.partition("=")
        if name in flags:
            taking = not equals
            values += [value] if equals else []
        elif taking and not _FLAG.match(word) and not _SETTING.fullmatch(word):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return values, rest


def _one(words: Sequence[str], *flags: str) -> tuple[str | None, list[str]]:
    """The one value of a flag; more words behind it stay where they are."""
    values, rest = take(words, *flags)
    if len(values) > 1:
        raise ConfigError(f"{flags[0]} takes one value, there are {len(values)}: {' '.join(values)}")
    return (values[0] if values else None), rest


def _outputs() -> str:
    return os.environ.get("KAVA_OUTPUT_PATH") or "outputs"


def _name_of(config: str, name: str) -> str:
    """How folders are called: by the recipe, which whoever submits by hand may name."""
    return "%CONFIG_NAME%" if config == "%CONFIG%" else name


def train(asked: Asked) -> list[Submission]:
    context = parsed("train", asked.filled(asked.words))
    recipe = check(["train", *asked.filled(asked.words)])
    config, _ = _one(asked.words, "--config")
    seed, _ = _one(asked.words, "--seed")
    output, rest = _one(asked.words, "--output_dir")
    quick = "_quick" if context.params["quick_test"] else ""
    name = _name_of(str(config), (recipe.about.name if recipe else "") or "run")
    output = output or f"{_outputs()}/{name}_seed_{seed or (recipe.system.seed if recipe else '')}{quick}"
    words = ["kava", "train", *_resumed(rest), "--output_dir", output]
    return [plan.alone(asked.base, "train", f"train-{asked.filled([name])[0]}", output, words, spread=True)]


def distill(asked: Asked) -> list[Submission]:
    context = parsed("distill", asked.filled(asked.words))
    more = dict(SIZES.get(asked.preset, {}))
    recipe = distilled(context, more)
    config, _ = _one(asked.words, "--config")
    seed, _ = _one(asked.words, "--seed")
    output, rest = _one(asked.words, "--output_dir")
    quick = "_quick" if context.params["quick_test"] else ""
    name = _name_of(config or "", recipe.about.name or "run")
    output = output or f"{_outputs()}/{name}_seed_{seed or recipe.system.seed}{quick}"
    words = ["kava", "distill", *_resumed(rest), "--output_dir", output, *(f"{key}={more[key]}" for key in more)]
    made = plan.alone(asked.base, "distill", f"distill-{asked.filled([name])[0]}", output, words, spread=True)
    note = f"preset {asked.preset} sets {' '.join(f'{key}={more[key]}' for key in more)}"
    return [replace(made, notes=(note,) if more else ())]


def _resumed(words: list[str]) -> list[str]:
    """A job that is put back into the queue goes on where it was."""
    return words if take(words, "--resume")[0] else [*words, "--resume", "auto"]


def evaluate(asked: Asked) -> list[Submission]:
    parsed("evaluate", asked.filled(asked.words))
    checkpoint, _ = _one(asked.words, "--checkpoint_dir", "--checkpoint")
    outputs = PurePath(str(checkpoint))
    outputs = outputs.parent if outputs.name == "best_checkpoint" else outputs
    words = ["kava", "evaluate", *asked.words]
    return [plan.alone(asked.base, "evaluate", f"evaluate-{outputs.name}", outputs.as_posix(), words, spread=False)]


def extract(asked: Asked) -> list[Submission]:
    if take(asked.words, "--shard")[0]:
        raise ConfigError("kava submit extract gives each task its --shard i/n", "say how many: --shards n")
    check(["extract", *asked.filled(asked.words)])
    store, _ = _one(asked.words, "--output_dir")
    name = PurePath(str(store)).name
    words, end = ["kava", "extract", *asked.words], ["kava", "extract", "--output_dir", str(store), "--verify"]
    return [plan.in_shards(asked.base, f"extract-{name}", str(store), asked.shards, words, end)]


def seeds(asked: Asked) -> list[Submission]:
    configs, rest = take(asked.words, "--config")
    if len(configs) > 1 and take(rest, "--output_dir")[0]:
        raise ConfigError("--output_dir is for one recipe", "several go to outputs/<recipe>_multi_seed each")
    return [_seeds_of(config, rest, asked) for config in configs or plan.PAPER]


def _seeds_of(config: str, rest: list[str], asked: Asked) -> Submission:
    from kava.cli.seeds import SEEDS

    context = parsed("seeds", asked.filled(["--config", config, *rest]))
    given, settings = context.params, check_flags(context)
    if given["jobs"] != 1:
        raise ConfigError("--jobs: every seed is a task of its own here", "leave it out")
    if any("system.seed" in word for word in settings):
        raise ConfigError("system.seed is set by --seeds", "leave it out")
    recipe = load_recipe(asked.filled([config])[0], settings)
    name = _name_of(config, recipe.about.name)
    root = _one(rest, "--output_dir")[0] or f"{_outputs()}/{name}_multi_seed"
    numbers = list(dict.fromkeys(given["seeds"] or SEEDS))
    quick = ["--quick_test"] if given["quick_test"] else []
    run = f"{root}/seed_%{plan.SEED}%"
    words = ["kava", "train", "--config", config, "--output_dir", run, "--seed", f"%{plan.SEED}%", "--resume", "auto"]
    words += [*quick, *(["--use_wandb"] if given["use_wandb"] else []), *settings]
    sets = ["--eval_dataset", *given["datasets"]] if given["datasets"] else []
    then = ["kava", "evaluate", "--checkpoint_dir", f"{run}/best_checkpoint", *sets, "--missing", *quick]
    commands = plan.run_commands([] if given["skip_train"] else words, [] if given["skip_eval"] else then)
    if not commands:
        raise ConfigError("--skip_train and --skip_eval leave nothing to submit", "kava aggregate needs no scheduler")
    aggregate = ["kava", "aggregate", "--seed_dirs", *(f"{root}/seed_{number}" for number in numbers)]
    aggregate += ["--config_name", name, *(["--model_name", given["model_name"]] if given["model_name"] else [])]
    aggregate += ["--datasets", *_short(given["datasets"])] if given["datasets"] else []
    aggregate += [f"--output_{kind}={root}/aggregated_results.{kind}" for kind in ("json", "yaml")]
    end = [] if given["skip_eval"] else aggregate
    return plan.over_seeds(asked.base, asked.filled([name])[0], root, numbers, commands, end)


def _short(sets: Sequence[str]) -> list[str]:
    from kava.evaluation.eval_sets import short_name

    return [short_name(name) for name in sets]


def suite(asked: Asked) -> list[Submission]:
    from kava.cli import suite as verb
    from kava.cli.seeds import SEEDS

    context = parsed("suite", asked.words)
    given, settings = context.params, check_flags(context)
    if given["jobs"] != 1 or given["list_"] or not given["name"]:
        raise ConfigError(
            "kava submit suite NAME takes neither --jobs nor --list", "kava suite --list shows the suites"
        )
    experiment, config = suite_named(given["name"]), given["config"]
    recipe = load_recipe(config, settings)
    root = given["output_dir"] / experiment.line(recipe)
    shared = config
    files: tuple[tuple[str, str], ...] = ()
    if (
        settings
    ):  # the recipe that members share is written when it is submitted; until then it lies in a scratch folder
        shared = verb._base(asked.scratch, experiment.name, config, settings)
        files = ((str(root / f"{experiment.name}.yaml"), Path(shared).read_text(encoding="utf-8")),)
    members = _Members(
        root,
        shared,
        list(dict.fromkeys(given["seeds"] or SEEDS)),
        list(dict.fromkeys(given["datasets"] or recipe.evaluation.datasets)),
        ["--quick_test"] if given["quick_test"] else [],
        given["skip_train"],
        given["skip_eval"],
    )
    picked = chosen(verb._members(experiment, recipe, config), given["members"] or [])
    waves, possible, notes = members.waves(picked, recipe.explicit.enabled, bool(given["members"]))
    if files:
        waves = [[tuple(_instead(one, shared, files[0][0]) for one in task) for task in wave] for wave in waves]
    words = ["kava", "suite", experiment.name, "--config", config, "--seeds", *map(str, members.seeds)]
    words += ["--members", *possible, "--output_dir", str(given["output_dir"]), "--datasets", *members.sets]
    end = [Command((*words, "--skip_train", "--skip_eval", *members.quick, *settings))]
    if experiment.name == "e1-e5":
        end.append(Command(("kava", "analyze", "--output_base", str(root))))
    title = f"{experiment.name}-{PurePath(config).stem}"
    made = plan.in_waves(asked.base, title, root.as_posix(), waves, end)
    return [replace(made, notes=notes, files=files)]


def _instead(command: Command, old: str, new: str) -> Command:
    return command._replace(words=tuple(new if word == old else word for word in command.words))


@dataclass(frozen=True)
class _Members:
    """What all runs of a suite have in common."""

    root: Path
    config: str
    seeds: list[int]
    sets: list[str]
    quick: list[str]
    skip_train: bool
    skip_eval: bool

    def waves(
        self, picked: Sequence[Member], explicit: bool, named: bool
    ) -> tuple[list[list[tuple[Command, ...]]], list[str], tuple[str, ...]]:
        """Runs that can go at once, wave by wave; the members that this recipe can have, and why not the others."""
        depth, notes = {"": -1}, []
        waves: dict[int, list[tuple[Command, ...]]] = {}
        names = {one.name for one in picked}
        possible: list[str] = []
        for one in picked:
            level = depth.get(one.after, -1) + 1
            try:
                runs = [self._run(one, seed, names, explicit) for seed in self.seeds]
            except ConfigError as error:
                if named:
                    raise
                notes.append(f"left out: {one.name}: {error.message}")
                continue
            depth[one.name] = level
            waves.setdefault(level, []).extend(runs)
            possible.append(one.name)
        return [waves[level] for level in sorted(waves)], possible, tuple(notes)

    def _run(self, one: Member, seed: int, names: set[str], explicit: bool) -> tuple[Command, ...]:
        from kava.cli import suite as verb

        evaluation = verb._evaluation(one, self.sets, self.quick, explicit)
        _, start = verb._before_it(one, seed, self.root, names, self.skip_train)
        settings = [*one.settings, *start]
        run = job(
            one.name, self.config, self.root / one.name / f"seed_{seed}", seed, settings, [evaluation], self.quick
        )
        run = run.without(self.skip_train, self.skip_eval)
        commands = plan.run_commands(_kava(run.train), _kava(run.evaluate[0] if run.evaluate else ()))
        if not commands:
            raise ConfigError("--skip_train and --skip_eval leave nothing to submit")
        return commands


def _kava(words: Sequence[str]) -> list[str]:
    return ["kava", *(word for word in words if word != "--quiet")] if words else []


VERBS: dict[str, Callable[[Asked], list[Submission]]] = {
    "train": train,
    "seeds": seeds,
    "suite": suite,
    "extract": extract,
    "distill": distill,
    "evaluate": evaluate,
}
