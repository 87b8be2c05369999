"""Several teachers on a command line of `kava distill`: what --phase sets, and what mixture.teachers becomes.

--phase N                         the recipe phaseN; with --config, that recipe with everything set that phase N is about
--teacher_models A B              these models; with --phase 1, a single model gets the prompts default and cot
--teacher_prompts P Q             one for each teacher, one for all, or several for one model
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kava.cli.distill_flags import FlagSettings, set_twice
from kava.cli.distill_table import MODELS, PHASE, PROMPTS, STORES
from kava.config import PROMPTS as NAMED_PROMPTS
from kava.config import Recipe, load_recipe, parse_overrides, recipe_path
from kava.config.effects import without_effect
from kava.config.keys import KEYS, flatten, nest
from kava.config.text import parse_text, read_file
from kava.errors import ConfigError

PHASES = {number: f"phase{number}" for number in "12345"}
TEACHERS, WEIGHTS = "mixture.teachers", "mixture.weights"
Spec = dict[str, Any]  # an entry of mixture.teachers


@dataclass
class TeacherFlags:
    """What flags say about the teachers, None where they say nothing; `fields` are settings of every one of them."""

    models: list[str | None] | None
    prompts: list[str] | None
    stores: list[str] | None
    fields: dict[str, Any] = field(default_factory=dict)


def default_recipe(typed: Mapping[str, str]) -> str | None:
    """The recipe of a command line without --config, if its flags are about several teachers."""
    if PHASE in typed:
        return _phase_recipe(typed[PHASE])
    return "phase3" if MODELS in typed else "phase1" if PROMPTS in typed else None


def with_teachers(flags: FlagSettings, config: str) -> dict[str, str]:
    """Everything that flags set, as settings of the recipe, and what --phase sets where they do not."""
    typed = {**flags.implied, **flags.typed}
    phase = typed.pop(PHASE, None)
    teachers = TeacherFlags(*(json.loads(typed.pop(name, "null")) for name in (MODELS, PROMPTS, STORES)))
    recipe = load_recipe(config)
    phase_sets: dict[str, str] = {}
    if phase is None:
        phase = next((number for number, name in PHASES.items() if name == config), None)
    elif config != _phase_recipe(phase):
        phase_sets = _phase_settings(phase, recipe, config)
    mixed = recipe.mixture.on or TEACHERS in typed or TEACHERS in phase_sets
    if not (mixed or teachers.models or teachers.prompts):
        if phase is not None:
            raise ConfigError(f"recipe {config} names no teachers for phase {phase}", "add --teacher_models A B")
        stores = teachers.stores or []
        if len(stores) > 1:
            raise ConfigError(f"--teacher_store: {len(stores)} folders for one teacher", "add --teacher_models")
        if stores and typed.setdefault("teacher.store", stores[0]) != stores[0]:
            raise set_twice("teacher.store", stores[0], "--teacher_store", typed["teacher.store"], "teacher.store")
        return typed
    _move_to_each_teacher(flags, typed, teachers)
    if any(vars(teachers).values()):
        if TEACHERS in typed:
            raise ConfigError(f"command line: {TEACHERS} and flags about teachers", "say it in one way")
        old = json.loads(phase_sets[TEACHERS]) if TEACHERS in phase_sets else recipe.to_dict()["mixture"]["teachers"]
        specs = _named(_specs(teachers, old, phase))
        typed[TEACHERS] = _text(specs)
        if WEIGHTS not in typed and not _weights_fit(specs, old, phase):
            typed[WEIGHTS] = "null"
    return add_effective(typed, phase_sets, _merged(recipe, phase_sets | typed))


def add_effective(typed: Mapping[str, str], optional: Mapping[str, str], recipe: Recipe | None) -> dict[str, str]:
    """`typed` and those of `optional` that are not typed and that have an effect in `recipe` (None: all of them)."""
    effective = (key for key in optional if recipe is None or without_effect(recipe, {key: 1}) is None)
    return {key: optional[key] for key in effective if key not in typed} | dict(typed)


def _merged(recipe: Recipe, settings: Mapping[str, str]) -> Recipe | None:
    """The recipe with `settings`, even if some of them have no effect; None if it is not valid (reported when loaded)."""
    words = [f"{key}={value}" for key, value in settings.items() if key in KEYS]
    try:
        return Recipe.model_validate(nest(flatten(recipe.to_dict(), "recipe", None) | parse_overrides(words)))
    except ValidationError:
        return None


def _text(value: Any) -> str:
    """A value as YAML on one line: as JSON, but without JSON's escapes of characters beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False)


def _phase_recipe(phase: str) -> str:
    if phase not in PHASES:
        hint = "phase 0, one teacher, is kava distill without --phase" if phase == "0" else None
        raise ConfigError(f"--phase {phase}: the phases are 1 to 5", hint)
    return PHASES[phase]


def _phase_settings(phase: str, recipe: Recipe, config: str) -> dict[str, str]:
    """Every key that some phase's recipe changes, with the value of phase `phase`.

    Teachers and weights stay those of `recipe`, except in phase 1, which is one model under two prompts: the model of
    `recipe` if all its teachers have the same one, else the student's.
    """
    if config in PHASES.values():
        raise ConfigError(f"recipe {config} is a phase itself", f"leave --config out, or --phase {phase}")
    files = {name: read_file(recipe_path(name), name) for name in PHASES.values()}
    keys = {key for name, data in files.items() for key in flatten({**data, "extends": {}}, name, None)}
    values = flatten(load_recipe(PHASES[phase]).to_dict(), "recipe", None)
    settings = {key: _text(values[key]) for key in keys if key in KEYS and not key.startswith("about.")}
    models = {teacher.model for teacher in recipe.mixture.teachers}
    if phase != "1":
        del settings[TEACHERS], settings[WEIGHTS]
    elif len(models) == 1:
        settings[TEACHERS] = _text([{**spec, "model": next(iter(models))} for spec in values[TEACHERS]])
    return settings


def _move_to_each_teacher(flags: FlagSettings, typed: dict[str, str], teachers: TeacherFlags) -> None:
    """Flags that set the one separate teacher elsewhere set every teacher of a mixture."""
    for key, (flag, target) in flags.mixture.items():
        value = typed.pop(key)
        if target == MODELS:
            if teachers.models is not None:
                raise ConfigError(f"command line: {flag} and --teacher_models", "leave one of them out")
            teachers.models = [None if value == "null" else value]
        elif "." not in target:
            teachers.fields[target] = value
        elif typed.setdefault(target, value) != value:
            raise set_twice(target, typed[target], target, value, flag)
    for key, value in flags.teacher.items():
        teachers.fields[key.removeprefix("teacher.")] = parse_text(value, "command line")


def _specs(flags: TeacherFlags, old: Sequence[Spec], phase: str | None) -> list[Spec]:
    """The entries of mixture.teachers; without a name where flags choose models or prompts.

    New models keep those settings that all teachers of the recipe (`old`) have in common.
    """
    specs = [dict(spec) for spec in old]
    if flags.models is not None or flags.prompts is not None:
        if flags.models is not None or len({spec["model"] for spec in old}) < 2:
            kept = ("dtype", "quantization", "trust_remote_code")
            common = {key: old[0][key] for key in kept if old and all(spec[key] == old[0][key] for spec in old)}
            specs = [{**common, "model": m} for m in flags.models or [old[0]["model"] if old else None]]
        prompts = flags.prompts or (["default", "cot"] if phase == "1" and len(specs) == 1 else ["default"])
        specs = specs * len(prompts) if len(specs) == 1 else specs
        prompts = prompts * len(specs) if len(prompts) == 1 else prompts
        _one_for_each("prompt", prompts, specs)
        specs = [{**spec, "prompt": prompt, "name": ""} for spec, prompt in zip(specs, prompts, strict=True)]
    if flags.stores is not None:
        _one_for_each("store", flags.stores, specs)
        specs = [{**spec, "store": store} for spec, store in zip(specs, flags.stores, strict=True)]
    for spec in specs:
        if spec["prompt"] not in NAMED_PROMPTS and "{question}" not in spec["prompt"]:
            reason = f"{spec['prompt']!r} is none of {', '.join(NAMED_PROMPTS)} and has no {{question}}"
            hint = "say where the question goes: 'Think first. {question}'"
            raise ConfigError(f"--teacher_prompts: {reason}", hint)
    return [spec | flags.fields for spec in specs]


def _one_for_each(what: str, values: Sequence[str], specs: Sequence[Spec]) -> None:
    if len(values) != len(specs):
        teachers = ", ".join(str(spec["model"]) for spec in specs)
        hint = f"give one {what} for each" + (", or one model" if what == "prompt" else "")
        raise ConfigError(f"--teacher_{what}s: {len(values)} {what}s for {len(specs)} teachers ({teachers})", hint)


def _named(specs: Sequence[Spec]) -> list[Spec]:
    """A name for each teacher without one: the model's; the prompt's if there is one model; else what tells them apart."""
    models = list(dict.fromkeys(spec["model"] for spec in specs))
    short = {model: (model or "own").rstrip("/").rpartition("/")[2] for model in models}
    named = []
    for number, spec in enumerate(specs, 1):
        model, prompt = spec["model"], spec["prompt"] if spec["prompt"] in NAMED_PROMPTS else f"prompt{number}"
        ambiguous = model and list(short.values()).count(short[model]) > 1
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", model.strip("/") if ambiguous else short[model])
        if len(specs) > 1 and len(models) == 1:
            label = prompt
        elif sum(other["model"] == model for other in specs) > 1:
            label = f"{label}_{prompt}"
        named.append({**spec, "name": spec["name"] or label})
    for spec in named:
        if [other["name"] for other in named].count(spec["name"]) > 1:
            hint = (
                "give them other prompts, or both a name: mixture.teachers=[{name: a, model: M}, {name: b, model: M}]"
            )
            raise ConfigError(f"two teachers are the same: {spec['model'] or 'own'} with prompt {spec['prompt']}", hint)
    return named


def _weights_fit(specs: Sequence[Spec], old: Sequence[Spec], phase: str | None) -> bool:
    """Whether the recipe's fixed weights hold for these teachers: the same ones, or phase 1's two prompts of one model."""
    new, former = ([(spec["model"], spec["prompt"]) for spec in entries] for entries in (specs, old))
    return new == former or (phase == "1" and len(specs) == 2 and specs[0]["model"] == specs[1]["model"])
