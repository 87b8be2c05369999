"""A member of an experiment, and the experiments by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kava.config import Recipe, differing, load_recipe
from kava.errors import ConfigError
from kava.lab.run_local import Job
from kava.registry import nearest


class Member(NamedTuple):
    """One student: the name of its folder, what it is, how its recipe differs, how it answers, and the member whose
    best checkpoint it begins with."""

    name: str
    title: str
    settings: tuple[str, ...] = ()
    mode: str = "latent"
    after: str = ""


@dataclass(frozen=True)
class Suite:
    """`line` names the folder its members belong to (latent, or by the recipe explicit); members may depend on the recipe,
    and those of `by_layer` on the student's number of layers too. `needs` says what a recipe without members lacks."""

    name: str
    title: str
    line: Callable[[Recipe], str]
    members: Callable[[Recipe], tuple[Member, ...]]
    needs: str = ""
    by_layer: Callable[[Recipe, int], tuple[Member, ...]] | None = None


def line_of(recipe: Recipe) -> str:
    """The method line of a recipe."""
    return "explicit" if recipe.explicit.enabled else "latent"


def suites() -> dict[str, Suite]:
    """Every experiment by name."""
    from kava.lab.suites import ablations, e1_e5, phases

    return {suite.name: suite for suite in (e1_e5.SUITE, ablations.SUITE, phases.PHASES, phases.STAGES)}


def suite_named(name: str) -> Suite:
    known = suites()
    if name not in known:
        raise ConfigError(f"unknown suite {name!r}", nearest(name, list(known)))
    return known[name]


def chosen(members: Sequence[Member], names: Sequence[str]) -> tuple[Member, ...]:
    """The members called `names`, in the suite's order; all of them where none is named."""
    known = [member.name for member in members]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown member {name!r}", nearest(name, known))
    return tuple(member for member in members if not names or member.name in names)


def job(
    label: str,
    config: str,
    folder: Path,
    seed: int,
    settings: Sequence[str],
    evaluations: Sequence[Sequence[str]],
    extra: Sequence[str] = (),
    after: str = "",
) -> Job:
    """One run: train it (what is there is continued), then evaluate its best checkpoint.

    `after` is the label of the job that has to be through first. The recipe is read now, before anything is started, so
    that a mistake costs seconds and not a night.
    """
    recipe = load_recipe(config, [*settings, f"system.seed={seed}"])
    words = ["train", "--config", config, "--output_dir", str(folder), "--seed", str(seed), "--resume", "auto"]
    best = str(folder / "best_checkpoint")
    done = not extra and _finished(folder, recipe)
    return Job(
        label=label,
        folder=folder,
        train=() if done else (*words, "--quiet", *extra, *settings),
        evaluate=tuple(("evaluate", "--checkpoint_dir", best, "--quiet", *words) for words in evaluations),
        updates=0 if done else recipe.training.max_steps or 0,
        after=after,
    )


def _finished(folder: Path, recipe: Recipe) -> bool:
    """This very run is through; one with other settings is left to `kava train`, which refuses it."""
    meta, stored = folder / "meta.json", folder / "recipe.yaml"
    if not meta.is_file() or not stored.is_file():
        return False
    done = json.loads(meta.read_text(encoding="utf-8")).get("finished", False)
    return bool(done) and not differing(load_recipe(stored), recipe)
