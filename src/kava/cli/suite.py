"""kava suite: an experiment with all its controls, over several seeds."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from kava.cli.common import OVERRIDES, check_flags, parse_recipe_args, show_result
from kava.cli.list_flags import app_of
from kava.cli.seeds import SEEDS
from kava.config import Recipe, load_recipe, parse_overrides, recipe_path
from kava.config.keys import nest
from kava.config.load import SHIPPED
from kava.config.text import write_file
from kava.errors import ConfigError, RunError
from kava.files import write_json
from kava.lab.analysis.runs import SUITE, find_runs
from kava.lab.analysis.validations import held_out_numbers
from kava.lab.plan import Member, Suite, chosen, job, suite_named, suites
from kava.lab.run_local import run_jobs
from kava.provenance import surroundings
from kava.text_table import table

CONTEXT = OVERRIDES
HELD_OUT = {"ce": "val CE", "kv": "val KV", "kv_unexplained": "KV / mean's"}  # the last: over a constant's distance


def suite(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SUITE", help="e1-e5, ablations, phases, stages")] = "",
    config: Annotated[str, typer.Option(help="the recipe that every member starts from")] = "embedded",
    seeds: Annotated[list[int] | None, typer.Option(help="default: 42 123 456")] = None,
    members: Annotated[list[str] | None, typer.Option(help="only these; default: all (see --list)")] = None,
    output_dir: Annotated[Path, typer.Option(help="the runs go to <output_dir>/<line>/<member>/seed_N")] = Path(
        "outputs"
    ),
    datasets: Annotated[list[str] | None, typer.Option(help="default: the recipe's evaluation.datasets")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once; with several CUDA_VISIBLE_DEVICES, one each")] = 1,
    skip_train: Annotated[bool, typer.Option("--skip_train", help="evaluate what is there")] = False,
    skip_eval: Annotated[bool, typer.Option("--skip_eval", help="only train")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="a few updates and items: does it run?")] = False,
    list_: Annotated[bool, typer.Option("--list", help="print the members and their settings, run nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Run every member of an experiment on the same data, in the same order, for the same updates, with the same seeds.

    e1-e5: no KV term, full KV, right-crop, R-KV, R-KV shuffled in time; and the controls random, uniform, targets of
    another question, pause tokens, no thoughts, explicit chain of thought. ablations: one thing at a time. phases: several
    teachers, weighed in every way, against each alone and against none. stages: one way of weighing after the other, each
    begun where the one before ended.

    Finished runs are kept; a member that breaks stops no other one, is shown as broken, and the exit code is 1. Settings
    that follow apply to every member. Then: kava analyze and kava report.
    """
    settings = check_flags(ctx)
    if not name:
        return _list_suites(quiet)
    experiment = suite_named(name)
    recipe = parse_recipe_args(config, settings)
    picked = chosen(_members(experiment, recipe, config), members or [])
    if list_:
        rows = [[one.name, one.title, " ".join(one.settings) or "(the recipe)"] for one in picked]
        show_result([one._asdict() for one in picked], table(rows, ("member", "what", "settings")), quiet)
        return 0
    numbers = list(dict.fromkeys(seeds or SEEDS))
    sets = list(dict.fromkeys(datasets or recipe.evaluation.datasets))
    root = output_dir / experiment.line(recipe)
    base = _base(root, name, config, settings) if settings else config
    plan = {
        f"{one.name}/seed_{number}": (one, number, root / one.name / f"seed_{number}")
        for number in numbers  # seeds outermost: whoever stops early has whole comparisons
        for one in picked
    }
    quick = ["--quick_test"] if quick_test else []
    queue, broken = [], {}
    for label, (one, number, folder) in plan.items():
        try:
            evaluation = _evaluation(one, sets, quick, recipe.explicit.enabled)
            before, start = _before_it(one, number, root, {first.name for first in picked}, skip_train)
            if before in broken:
                raise ConfigError(f"it begins where {before} ends, which broke")
            run = job(label, base, folder, number, [*one.settings, *start], [evaluation], quick, before)
        except ConfigError as error:  # a member that this recipe cannot have
            broken[label] = error.message
            continue
        queue.append(run.without(train=skip_train, evaluate=skip_eval))
    _describe(root, name, config, settings, numbers, sets, picked, broken)
    broken |= run_jobs(queue, jobs, quiet)
    _describe(root, name, config, settings, numbers, sets, picked, broken)
    for label, reason in broken.items():
        print(f"broken: {label}: {reason}", file=sys.stderr)
    result = _result(root, picked, broken)
    show_result(result, _text(result, root, name), quiet)
    return 1 if broken else 0


def _base(root: Path, name: str, config: str, settings: list[str]) -> str:
    """A recipe file with the settings that all members share. A member may switch off what they are about, as it may
    with those of a shipped recipe; on one command line that would be a setting without effect."""
    about = load_recipe(config).about.model_dump()
    extends = config if recipe_path(config).parent == SHIPPED else str(recipe_path(config).resolve())
    path = root / f"{name}.yaml"
    write_file(path, {"extends": extends, "about": about, **nest(parse_overrides(settings))}, "shared by all members")
    return str(path)


def _members(experiment: Suite, recipe: Recipe, config: str) -> tuple[Member, ...]:
    """Those of the recipe, and where they go layer by layer also those of the student's number of layers."""
    found = experiment.members(recipe)
    if not found:
        raise ConfigError(f"suite {experiment.name} has no members for recipe {config}", f"it needs {experiment.needs}")
    if experiment.by_layer is None or not recipe.mixture.on:
        return found
    from kava.backbone.sizes import num_layers

    return (*found, *experiment.by_layer(recipe, num_layers(recipe.model)))


def _before_it(
    member: Member, seed: int, root: Path, picked: Collection[str], skip_train: bool
) -> tuple[str, tuple[str, ...]]:
    """The job that `member` waits for, and the setting that names where that one ends."""
    if not member.after:
        return "", ()
    best = root / member.after / f"seed_{seed}" / "best_checkpoint"
    if member.after not in picked and not skip_train and not best.is_dir():
        raise RunError(
            f"{member.name} begins where {member.after} ends, and there is no {best}",
            f"add {member.after} to --members",
        )
    return f"{member.after}/seed_{seed}", (f"training.start_from={best}",)


def _list_suites(quiet: bool) -> int:
    known = suites().values()
    data = [{"name": one.name, "title": one.title} for one in known]
    text = table([[one.name, one.title] for one in known], ("suite", "what"))
    show_result(data, text + "\n\nkava suite NAME --list shows the members", quiet)
    return 0


def _evaluation(member: Member, sets: list[str], quick: list[str], explicit: bool) -> list[str]:
    words = ["--eval_dataset", *sets, "--missing", *quick]
    words += ["--mode", member.mode] if member.mode != "latent" else []
    return [*words, "--losses"] if explicit or member.mode == "latent" else words


def _describe(
    root: Path,
    name: str,
    config: str,
    settings: list[str],
    seeds: list[int],
    sets: list[str],
    members: tuple[Member, ...],
    broken: dict[str, str],
) -> None:
    """suite.json: what was asked for; members and seeds of an earlier call stay in it."""
    path = root / SUITE
    before: dict[str, Any] = _before(path, name, config)
    known = {
        one.name: {"title": one.title, "settings": [*settings, *one.settings], "mode": one.mode} for one in members
    }
    asked = {f"{one.name}/seed_{number}" for one in members for number in seeds}
    still = {label: reason for label, reason in before.get("broken", {}).items() if label not in asked}
    facts = {
        "suite": name,
        "config": config,
        "seeds": list(dict.fromkeys([*before.get("seeds", []), *seeds])),
        "sets": sets,
        "members": before.get("members", {}) | known,
        "broken": still | broken,
    }
    write_json(path, facts | surroundings())


def _before(path: Path, name: str, config: str) -> dict[str, Any]:
    from kava.config.text import read_file

    before = read_file(path, str(path)) if path.is_file() else {}
    for key, value in (("suite", name), ("config", config)):
        if before and before.get(key) != value:
            raise ConfigError(
                f"{path.parent} holds {key} {before.get(key)!r}, not {value!r}", "choose another --output_dir"
            )
    return before


def _result(root: Path, members: tuple[Member, ...], broken: dict[str, str]) -> list[dict[str, Any]]:
    """A line per run and set, and the broken ones without numbers."""
    runs = find_runs([root]) if any(path.is_dir() for path in root.iterdir()) else []
    modes = {one.name: one.mode for one in members}
    rows = []
    for run in runs:
        if run.member not in modes:
            continue
        facts: dict[str, Any] = {"member": run.member, "seed": run.seed, "status": run.status}
        facts["held_out"] = held_out_numbers(run.log())
        found = [r for r in run.results if (r.mode, r.ablate, r.part) == (modes[run.member], None, "")]
        rows += [
            facts
            | {"set": r.set, "accuracy": r.accuracy, "correct": r.correct, "total": r.total, "passes": r.passes_mean}
            for r in found
        ] or [facts | {"reason": broken.get(f"{run.member}/seed_{run.seed}", "not evaluated")}]
    return rows


def _text(rows: list[dict[str, Any]], root: Path, name: str) -> str:
    """A line per run and set; beside the accuracy of runs with several teachers what their last validation said."""
    several = any("kv" in row["held_out"] for row in rows)
    lines = []
    for row in rows:
        if "accuracy" in row:
            counts = f"{row['correct']}/{row['total']}" if row["correct"] is not None else str(row["total"])
            numbers = [row["set"], f"{100 * row['accuracy']:.1f} %", counts, f"{row['passes'] or 0:.1f}"]
        else:
            numbers = ["-", "-", "-", row["reason"]]
        beside = (
            [f"{row['held_out'][one]:.4f}" if one in row["held_out"] else "-" for one in HELD_OUT] if several else []
        )
        lines.append([row["member"], str(row["seed"]), row["status"], *beside, *numbers])
    columns = tuple(HELD_OUT.values()) if several else ()
    header = ("member", "seed", "status", *columns, "set", "accuracy", "correct", "passes")
    then = [f"kava report {root} --output report.html"]
    if name != "ablations":
        then.insert(0, f"kava analyze --output_base {root}")
    return f"{table(lines, header)}\n\nnext: " + "\n      ".join(then)


app = app_of("suite", suite, **OVERRIDES)
