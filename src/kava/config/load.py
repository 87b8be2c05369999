"""Merges recipe files and overrides into one checked `Recipe` that records where every value was set."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from kava.config.effects import without_effect
from kava.config.fields import TABLE_ROW
from kava.config.keys import FREE, KEYS, SECTIONS, flatten, nest, show, unknown_key
from kava.config.schema import Origin, Recipe
from kava.config.teaching import TeacherSpec
from kava.config.text import parse_text, read_file, write_file
from kava.errors import ConfigError
from kava.registry import nearest

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"
COMMAND_LINE, OVERRIDES = "command line", "overrides"
_TWINS = ("system.gradient_accumulation_steps", "training.gradient_accumulation_steps")


class Layer(NamedTuple):
    """The settings of one file, or of the command line."""

    label: str
    values: dict[str, Any]

    @property
    def origin(self) -> Origin:
        return Origin(self.label, self.values.get("about.tag", "ours"), self.values.get("about.source", ""))


class RecipeRow(NamedTuple):
    """One value of a recipe: `tag` and `source` tell how well it is known, `origin` where it was set."""

    key: str
    value: Any
    tag: str
    source: str
    origin: str


def list_recipes() -> list[str]:
    """The names of the shipped recipes; files that start with "_" are parents only."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if not path.stem.startswith("_"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe of a shipped name or a file, with its parents below it and `overrides` above it.

    Overrides are texts as on the command line, ["training.max_steps=20"], or values, {"training.max_steps": 20}; a
    mapping of sections, {"training": {"max_steps": 20}}, says the same.
    """
    layers = _layers(name_or_path)
    name = layers[-1].values.get("about.name") or Path(layers[-1].label).stem
    if overrides:
        layers.append(_override_layer(overrides))
    values: dict[str, Any] = {}
    changed: dict[str, int] = {}  # the last layer that changed a key
    for place, layer in enumerate(layers):
        for key, value in _one_accumulation(layer).items():
            if value != values.get(key, _default(key)):
                changed[key] = place
            values[key] = value
    # a parent's section about is not inherited
    own = {key: value for layer in layers[-2 if overrides else -1 :] for key, value in layer.values.items()}
    values = {key: value for key, value in values.items() if not key.startswith("about.") or key in own}
    values["about.name"] = name
    recipe = _validated(values, layers, changed)
    back = {key for key in changed if key in values and values[key] == _default(key)}  # judged as causes only
    _refuse_idle(recipe, changed, back, layers)
    typed = layers[-1].values if overrides else {}  # also where it says again what a file says
    changed.update({key: len(layers) - 1 for key in typed if key in changed})
    recipe._origins.update(
        {**_row_of_the_table(layers), **{key: layers[place].origin for key, place in changed.items()}}
    )
    return recipe


def _override_layer(overrides: Sequence[str] | Mapping[str, Any]) -> Layer:
    if isinstance(overrides, Mapping):
        values = flatten(nest(flatten(overrides, OVERRIDES, None)), OVERRIDES, KEYS)
        return Layer(
            OVERRIDES, {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        )
    return Layer(COMMAND_LINE, parse_overrides([overrides] if isinstance(overrides, str) else overrides))


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`section.key=value`, `--section.key value` and `--section.key=value`, values read as YAML."""
    overrides: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not equals and not word.startswith("--"):
            raise ConfigError(f"{COMMAND_LINE}: unexpected {word!r}", "settings are written section.key=value")
        if "." not in name and name not in SECTIONS:
            raise _unknown_flag(word.partition("=")[0])
        if name not in KEYS and not name.startswith(FREE + "."):
            raise unknown_key(name, COMMAND_LINE)
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: {name} has no value", f"write {name}=VALUE")
            text = queue.pop(0)
        overrides[name] = _parse_value(name, text)
    return flatten(nest(overrides), COMMAND_LINE, KEYS)


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a shipped recipe's name, or the path itself."""
    text = str(name_or_path)
    shipped = SHIPPED / f"{text}.yaml"
    if "/" not in text and "\\" not in text and os.path.isfile(shipped):  # False also for an impossible name
        return shipped
    path = Path(text)
    if os.path.isfile(path):
        return path
    if os.path.exists(path):
        raise ConfigError(f"{text}: {'a folder' if os.path.isdir(path) else 'a device or a pipe'}, no recipe file")
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        raise ConfigError(f"no such recipe file: {text}", nearest(path.stem, list_recipes()))
    raise ConfigError(f"unknown recipe {text!r}", nearest(text, list_recipes()))


def explain(recipe: Recipe) -> list[RecipeRow]:
    """Every value of the recipe with its tag, its source and where it was set."""
    rows = []
    for key, value in flatten(recipe.to_dict(), "recipe", None).items():
        known = KEYS.get(key, KEYS[FREE])
        if key in recipe._origins:
            origin = recipe._origins[key]
        elif key in KEYS and value == known.default:
            origin = Origin("default", known.tag, known.source)
        else:
            origin = Origin("given", "ours", "")
        rows.append(RecipeRow(key, value, origin.tag, origin.source, origin.place))
    return [row for row in rows if not row.key.startswith("about.")]


def save_recipe(recipe: Recipe, path: str | Path, header: str = "") -> Path:
    """Writes every value of the recipe; the file loads as an equal recipe. YAML, or JSON by the suffix."""
    target = Path(path)
    write_file(target, recipe.to_dict(), header or f"recipe {recipe.about.name}, every value written out")
    return target


def _row_of_the_table(layers: Sequence[Layer]) -> dict[str, Origin]:
    """Defaults are known for one row of Table 6; in a recipe of another row they have that row's tag."""
    rows = [layer.values for layer in layers if str(layer.values.get("about.source", "")).startswith(TABLE_ROW)]
    if not rows or rows[-1]["about.tag"] == "known":
        return {}
    origin = Origin("default", rows[-1]["about.tag"], rows[-1]["about.source"])
    return {key.name: origin for key in KEYS.values() if key.source.startswith(TABLE_ROW)}


def _unknown_flag(word: str) -> ConfigError:
    kind = "flag" if word.startswith("--") else "key"
    leaf = word.removeprefix("--").replace("-", "_")
    same = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    return ConfigError(
        f"{COMMAND_LINE}: unknown {kind} {word!r}",
        f"did you mean {same[0]!r}?" if same else "see --help, and kava config --keys for section.key=value",
    )


def _parse_value(name: str, text: str) -> Any:
    key = KEYS.get(name)
    if key is not None and key.is_text:
        nullable = key.kind.endswith("or null")
        return None if nullable and text in ("", "null", "~") else text
    return parse_text(text, f"{COMMAND_LINE}: {name}")


def _default(key: str) -> Any:
    return KEYS[key].default if key in KEYS else None


def _layers(name_or_path: str | Path) -> list[Layer]:
    """The file and its parents, oldest first."""
    layers: list[Layer] = []
    visited: set[Path] = set()
    path: Path | None = recipe_path(name_or_path)
    while path is not None:
        label = path.name if path.parent == SHIPPED else str(path)
        if path.resolve() in visited:
            raise ConfigError(f"{label}: extends itself through its parents")
        visited.add(path.resolve())
        data = read_file(path, label)
        parent = data.pop("extends", None)
        layers.insert(0, Layer(label, flatten(data, label, KEYS)))
        path = None if parent is None else _parent(str(parent), path, label)
    return layers


def _parent(name: str, child: Path, label: str) -> Path:
    beside = child.parent / name
    if os.path.isfile(beside):
        return beside
    try:
        return recipe_path(name)
    except ConfigError as error:
        raise ConfigError(f"{label}: extends {name!r}: {error.message}", error.hint) from error


def _one_accumulation(layer: Layer) -> dict[str, Any]:
    """The layer's values with system.gradient_accumulation_steps moved to its place under training."""
    values = dict(layer.values)
    twin = values.pop(_TWINS[0], None)
    if twin is None:
        return values
    if values.get(_TWINS[1], twin) != twin:
        raise ConfigError(
            f"{layer.label}: {_TWINS[0]} = {show(twin)}, but {_TWINS[1]} = {show(values[_TWINS[1]])}", "set one of them"
        )
    values[_TWINS[1]] = twin
    return values


def _validated(values: Mapping[str, Any], layers: Sequence[Layer], changed: Mapping[str, int]) -> Recipe:
    try:
        return Recipe.model_validate(nest(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = _public_name(first["loc"])
    if key in KEYS or key.startswith(FREE + "."):
        label = layers[changed.get(key, -1)].label
        allowed = _inside(first) or "needs " + (KEYS[key].kind if key in KEYS else "see TrainingArguments")
        raise ConfigError(f"{label}: {key} = {show(values.get(key))} is not valid: {allowed}", _near(key, values))
    text = str(first.get("ctx", {}).get("error", first["msg"]))
    reason, _, hint = text.partition("; ")
    names_key = f"{key}.{reason.split()[0]}".startswith((*KEYS, FREE + "."))  # it begins with a key of that section
    where = "" if not key or reason.startswith(key) else f"{key}." if names_key else f"{key}: "
    raise ConfigError(f"{layers[-1].label}: {where}{reason}", hint or None)


def _inside(error: Any) -> str | None:
    """The error inside a value with parts: two shares, an entry of a list of teachers."""
    path = [str(part) for part in error["loc"][2:] if not isinstance(part, int)]
    if error["type"] == "extra_forbidden":
        return f"unknown key {path[-1]!r}, " + nearest(path[-1], sorted(TeacherSpec.model_fields))
    reason = str(error.get("ctx", {}).get("error", ""))
    if reason and not reason.startswith("one of"):
        return reason
    return f"{path[-1]}: {error['msg'][:1].lower()}{error['msg'][1:]}" if path else None


def _near(key: str, values: Mapping[str, Any]) -> str | None:
    """A hint with the nearest choice for a misspelt one."""
    options = KEYS[key].kind.removeprefix("one of ").split(", ") if key in KEYS else []
    value = values.get(key)
    close = difflib.get_close_matches(value, options, n=1) if isinstance(value, str) else []
    return f"did you mean {close[0]!r}?" if close else None


def _public_name(loc: Sequence[int | str]) -> str:
    """A pydantic location as a dotted key; positions inside a list are left out."""
    name = ""
    for part in loc:
        name = f"{name}.{part}" if name else str(part)
        if name in KEYS:
            return name
    return name


def _refuse_idle(recipe: Recipe, changed: Mapping[str, int], back: set[str], layers: Sequence[Layer]) -> None:
    """Refuses settings without effect. A file that lists (nearly) every key is a saved run, which is not judged again."""
    complete = {place for place, layer in enumerate(layers) if _is_saved_run(layer.values)}
    judged = {key: place for key, place in changed.items() if place not in complete}
    if ignored := without_effect(recipe, judged, back):
        key, reason = ignored
        raise ConfigError(
            f"{layers[changed[key]].label}: {key} has no effect here: {reason}", f"leave {key} out, or change the other"
        )


def _is_saved_run(values: Mapping[str, Any]) -> bool:
    """True if nearly every key of a run's sections is listed; later versions may have added some."""
    named = {key.partition(".")[0] for key in values}
    expected = {key for key in KEYS if key.partition(".")[0] in named} - {FREE}
    return {"latent", "loss", "rkv", "lora", "training"} <= named and len(expected & set(values)) >= 0.8 * len(expected)
