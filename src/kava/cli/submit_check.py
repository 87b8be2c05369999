"""A command line of `kava`, checked without running it: its flags and its recipe. A mistake costs seconds."""

import importlib
from collections.abc import Sequence
from typing import Any

from kava.cli.common import OVERRIDES, check_flags, parse_recipe_args
from kava.cli.verbs import underscores, verb_command
from kava.cluster.spec import JobSpec, filled, singles
from kava.config import Recipe, load_recipe
from kava.config.effects import without_effect
from kava.errors import ConfigError


def parsed(verb: str, words: Sequence[str]) -> Any:
    """The verb's context: its flags, and the words that are none of them."""
    command = verb_command(verb, importlib.import_module(f"kava.cli.{verb}"))
    return command.make_context(f"kava {verb}", underscores(words))


def check(words: Sequence[str]) -> Recipe | None:
    """The recipe of a command line; one that kava would not take is an error."""
    verb, *rest = words
    context = parsed(verb, rest)
    if verb == "distill":
        return distilled(context)
    if getattr(importlib.import_module(f"kava.cli.{verb}"), "CONTEXT", None) is not OVERRIDES:
        return None
    if context.params.get("config") is None:  # kava extract --verify
        check_flags(context)
        return None
    seed = context.params.get("seed")
    return parse_recipe_args(context.params["config"], context, None if seed is None else f"system.seed={seed}")


def distilled(context: Any, more: dict[str, str] | None = None) -> Recipe:
    """The recipe of a `kava distill`, without the settings that the machine running it will decide.

    `more` are settings of a preset; those that the command line sets, or that would do nothing, are removed from it.
    """
    from kava.cli.distill import request_of
    from kava.cli.distill_table import AUTO, CACHE, WARMUP
    from kava.cli.distill_teachers import with_teachers

    request = request_of(context)
    settings = with_teachers(request.flags, request.config)
    settings = {key: text for key, text in settings.items() if key not in (CACHE, WARMUP) and text not in AUTO}
    recipe = load_recipe(request.config, [f"{key}={text}" for key, text in settings.items()])
    if not recipe.explicit.enabled and not recipe.mixture.on:
        problem = f"recipe {request.config} has no separate teacher"
        raise ConfigError(problem, f"kava submit train --config {request.config}")
    for key in list(more or {}):
        if key in settings or key in request.flags.typed or without_effect(recipe, {key: 1}) is not None:
            del (more or {})[key]
    return recipe


def check_job(spec: JobSpec, values: dict[str, str], replaced: dict[str, str]) -> None:
    """Every command of the job, with the values that its tasks will have; of equal tasks the first.

    `values` are those of exported variables; `replaced` names stand-ins for files that are not written yet.
    """
    tasks = [single.tasks[0] for single in singles(spec)] if spec.array is not None else list(spec.tasks)
    for commands in tasks if len(spec.tasks) > 1 or spec.lists else tasks[:1]:
        for command in commands:
            check([replaced.get(word, filled(word, values)) for word in command.words][1:])
