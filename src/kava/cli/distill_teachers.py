"""Several teachers on a command line of `kava distill`: what a phase is, and who the teachers are.

--phase N                         the recipe phaseN; with --config, that recipe with what phases are about set as in phaseN
--teacher_models A B              these models; --phase 1 shows a single one the prompts default and cot
--teacher_prompts P Q             one for each teacher, one for all, or several for one model
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kava.cli.distill_flags import Asked, set_twice
from kava.cli.distill_table import MODELS, PHASE, PROMPTS, STORES
from kava.config import PROMPTS as NAMED
from kava.config import Recipe, load_recipe, parse_overrides, recipe_path
from kava.config.effects import without_effect
from kava.config.keys import KEYS, flatten, nest
from kava.config.text import parse_text, read_file
from kava.errors import ConfigError

PHASES = ("1", "2", "3", "4", "5")
TEACHERS, WEIGHTS = "mixture.teachers", "mixture.weights"
Spec = dict[str, Any]


@dataclass
class Who:
    """What the flags say of the teachers; None where they say nothing. `fields` are the same for all."""

    models: list[str | None] | None
    prompts: list[str] | None
    stores: list[str] | None
    fields: dict[str, Any]

    def __bool__(self) -> bool:
        return bool(self.models or self.prompts or self.stores or self.fields)


def recipe_for(given: Mapping[str, str]) -> str | None:
    """The recipe of a command line without --config, where it is about several teachers."""
    if PHASE in given:
        return _recipe_of(given[PHASE])
    return "phase3" if MODELS in given else "phase1" if PROMPTS in given else None


def with_teachers(asked: Asked, config: str) -> dict[str, str]:
    """What was given, all of it as settings of the recipe, and under it what --phase brings along."""
    given = {key: value for key, value in asked.along.items() if key not in asked.given} | asked.given
    phase = given.pop(PHASE, None)
    models, prompts, stores = (json.loads(given.pop(name, "null")) for name in (MODELS, PROMPTS, STORES))
    who = Who(models, prompts, stores, {})
    recipe = load_recipe(config)
    brought: dict[str, str] = {}
    if phase is None:
        phase = config.removeprefix("phase") if config in map(_recipe_of, PHASES) else None
    elif config != _recipe_of(phase):
        brought = _of_phase(phase, recipe, config)
    several = recipe.mixture.on or TEACHERS in given or TEACHERS in brought
    if not (several or who.models or who.prompts):
        if phase is not None:
            raise ConfigError(f"recipe {config} names no teachers for phase {phase}", "add --teacher_models A B")
        return given | _one_store(who, given)
    _redirect(asked, given, who)
    if who:
        if TEACHERS in given:
            raise ConfigError(f"command line: {TEACHERS} and flags about teachers", "say it in one way")
        old = json.loads(brought[TEACHERS]) if TEACHERS in brought else recipe.to_dict()["mixture"]["teachers"]
        specs = _named(_specs(who, old, phase))
        given |= {TEACHERS: _text(specs)} | _weights(given, specs, old, phase)
    return _with_effect(brought, given, recipe) | given


def _text(value: Any) -> str:
    """As a command line would give it: YAML reads JSON, but not its escapes of what is beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False)


def _recipe_of(phase: str) -> str:
    if phase not in PHASES:
        hint = "phase 0, one teacher, is kava distill without --phase" if phase == "0" else None
        raise ConfigError(f"--phase {phase}: the phases are 1 to 5", hint)
    return f"phase{phase}"


def _of_phase(phase: str, recipe: Recipe, config: str) -> dict[str, str]:
    """Everything that some phase changes, as phase `phase` has it. Teachers and weights are the recipe's own, but in
    phase 1: there they are one model under two prompts, the recipe's if all its teachers are one, else the student's."""
    if config in map(_recipe_of, PHASES):
        raise ConfigError(f"recipe {config} is a phase itself", f"leave --config out, or --phase {phase}")
    files = {name: read_file(recipe_path(name), name) for name in map(_recipe_of, PHASES)}
    keys = {key for name, data in files.items() for key in flatten({**data, "extends": {}}, name, None)}
    values = flatten(load_recipe(_recipe_of(phase)).to_dict(), "recipe", None)
    found = {key: _text(values[key]) for key in keys if key in KEYS and not key.startswith("about.")}
    models = {teacher.model for teacher in recipe.mixture.teachers}
    if phase != "1":
        del found[TEACHERS], found[WEIGHTS]
    elif len(models) == 1:
        specs = [{**spec, "model": next(iter(models))} for spec in values[TEACHERS]]
        found[TEACHERS] = _text(specs)
    return found


def _one_store(who: Who, given: Mapping[str, str]) -> dict[str, str]:
    if not who.stores:
        return {}
    if len(who.stores) > 1:
        raise ConfigError(f"--teacher_store: {len(who.stores)} folders for one teacher", "add --teacher_models")
    if given.get("teacher.store", who.stores[0]) != who.stores[0]:
        raise set_twice("teacher.store", who.stores[0], "--teacher_store", given["teacher.store"], "teacher.store")
    return {"teacher.store": who.stores[0]}


def _redirect(asked: Asked, given: dict[str, str], who: Who) -> None:
    """Flags that are about the one teacher elsewhere are about every one here."""
    for key, (spelled, target) in asked.mixture.items():
        value = given.pop(key)
        if target == MODELS:
            if who.models is not None:
                raise ConfigError(f"command line: {spelled} and --teacher_models", "leave one of them out")
            who.models = [None if value == "null" else value]
        elif "." not in target:
            who.fields[target] = value
        elif given.setdefault(target, value) != value:
            raise set_twice(target, given[target], target, value, spelled)
    for key, value in asked.teacher.items():
        who.fields[key.removeprefix("teacher.")] = parse_text(value, "command line")


def _specs(who: Who, old: Sequence[Spec], phase: str | None) -> list[Spec]:
    """The teachers, without names where flags say who they are; settings that the recipe's have in common stay."""
    if who.models is None and who.prompts is None:
        specs = [dict(spec) for spec in old]
    elif who.models is None and who.prompts is not None and len({spec["model"] for spec in old}) > 1:
        prompts = who.prompts * len(old) if len(who.prompts) == 1 else who.prompts
        _count("prompt", prompts, [str(spec["model"]) for spec in old])
        specs = [{**spec, "prompt": prompt, "name": ""} for spec, prompt in zip(old, prompts, strict=True)]
    else:
        models = who.models or [old[0]["model"] if old else None]
        prompts = who.prompts or (["default", "cot"] if phase == "1" and len(models) == 1 else ["default"])
        models = models * len(prompts) if len(models) == 1 else models
        prompts = prompts * len(models) if len(prompts) == 1 else prompts
        _count("prompt", prompts, [str(model) for model in models])
        kept = ("dtype", "quantization", "trust_remote_code")
        common = {key: old[0][key] for key in kept if old and all(one[key] == old[0][key] for one in old)}
        specs = [{**common, "model": m, "prompt": p, "name": ""} for m, p in zip(models, prompts, strict=True)]
    if who.stores is not None:
        _count("store", who.stores, [str(spec["model"]) for spec in specs])
        specs = [{**spec, "store": store} for spec, store in zip(specs, who.stores, strict=True)]
    for spec in specs:
        if spec["prompt"] not in NAMED and "{question}" not in spec["prompt"]:
            raise ConfigError(
                f"--teacher_prompts: {spec['prompt']!r} is none of {', '.join(NAMED)} and has no {{question}}",
                "say where the question goes: 'Think first. {question}'",
            )
    return [spec | who.fields for spec in specs]


def _count(what: str, found: Sequence[str], teachers: Sequence[str]) -> None:
    if len(found) != len(teachers):
        raise ConfigError(
            f"--teacher_{what}s: {len(found)} {what}s for {len(teachers)} teachers ({', '.join(teachers)})",
            f"give one {what} for each, or one model" if what == "prompt" else f"give one {what} for each",
        )


def _named(specs: Sequence[Spec]) -> list[Spec]:
    """A name for each: the model's; the prompt's where all are one model; both where two would be called the same."""
    models = list(dict.fromkeys(spec["model"] for spec in specs))
    short = {model: (model or "own").rstrip("/").rpartition("/")[2] for model in models}
    clash = {one for one in short.values() if list(short.values()).count(one) > 1}
    labels = {m: _safe(m.strip("/") if m and short[m] in clash else short[m]) for m in models}
    named = []
    for number, spec in enumerate(specs, 1):
        label = labels[spec["model"]]
        prompt = spec["prompt"] if spec["prompt"] in NAMED else f"prompt{number}"
        if len(specs) > 1 and len(models) == 1:
            label = prompt
        elif sum(other["model"] == spec["model"] for other in specs) > 1:
            label = f"{label}_{prompt}"
        named.append({**spec, "name": spec["name"] or label})
    for spec in named:
        if sum(other["name"] == spec["name"] for other in named) > 1:
            raise ConfigError(
                f"two teachers are the same: {spec['model'] or 'own'} with prompt {spec['prompt']}",
                "give them other prompts, or both a name: mixture.teachers=[{name: a, model: M}, {name: b, model: M}]",
            )
    return named


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def _weights(given: Mapping[str, str], specs: Sequence[Spec], old: Sequence[Spec], phase: str | None) -> dict[str, str]:
    """A recipe's weights belong to its teachers; others begin as equals. Phase 1 keeps its 0.7 and 0.3 for two prompts."""
    same = [(spec["model"], spec["prompt"]) for spec in specs] == [(spec["model"], spec["prompt"]) for spec in old]
    two_prompts = phase == "1" and len(specs) == 2 and specs[0]["model"] == specs[1]["model"]
    return {} if WEIGHTS in given or same or two_prompts else {WEIGHTS: "null"}


def _with_effect(brought: Mapping[str, str], given: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """What a phase brings along and is neither given nor without effect beside what is: nobody asked for that by name."""
    values = flatten(recipe.to_dict(), "recipe", None)
    own = {key: value for key, value in given.items() if key in KEYS}
    values |= parse_overrides([f"{key}={value}" for key, value in {**brought, **own}.items()])
    try:
        whole = Recipe.model_validate(nest(values))
    except ValidationError:  # told with its place when the recipe is loaded
        return {key: value for key, value in brought.items() if key not in given}
    return {
        key: value for key, value in brought.items() if key not in given and without_effect(whole, {key: 1}) is None
    }
