"""What a command line of `kava distill` leaves open: settled by the machine, by the run it continues, by arithmetic.

Whatever was given wins. With the recipe `adaptive` the machine decides the rest (see `kava env`); with any other recipe
its own values hold, and the machine is asked only where `auto` or `probe` is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from kava.cli.distill_flags import Asked
from kava.cli.distill_table import AUTO, CACHE, WARMUP
from kava.cli.distill_teachers import with_teachers
from kava.cli.train import QUICK
from kava.config import Recipe, load_recipe, show
from kava.config.compare import FREE_TO_CHANGE
from kava.config.effects import without_effect
from kava.config.keys import FREE, flatten
from kava.data.shared_store import CACHES, move_cache
from kava.errors import ConfigError
from kava.machine.adapter import EnvironmentAdapter, create_environment_adapter
from kava.machine.autotune import accumulate

ADAPTIVE = "adaptive"
RATIO = "training.warmup_ratio"
PREFETCH = f"{FREE}.dataloader_prefetch_factor"
BATCH, ACCUMULATION, STEPS = "training.batch_size", "training.gradient_accumulation_steps", "training.max_steps"
LOCAL = {  # what the guide has downloaded to its own folders; taken where it is there
    "teacher.name": ("models", "qwen-1.5b-teacher"),
    "model.name": ("models", "qwen-0.5b-student"),
    "dataset.name": ("data", "gsm8k/train"),
}
Probe = Callable[[Recipe], int]


@dataclass(frozen=True)
class Wish:
    """A command line: the verb's own flags, and what the guides' flags and settings say."""

    asked: Asked = field(default_factory=Asked)
    config: str = ADAPTIVE
    output_dir: str | None = None
    resume: str | None = None
    quick: bool = False
    wandb: bool = False


@dataclass(frozen=True)
class Plan:
    """A run: its recipe, its folder, and a line on what was chosen and why."""

    recipe: Recipe
    folder: Path
    line: str


class Machine:
    """What `kava env` recommends, as text of a recipe. The CPU may be forbidden: then this raises."""

    def __init__(self, adapter: EnvironmentAdapter, device: str | None = None):
        self.adapter = adapter
        self.device = adapter.device_for_training(device)
        self.processes: int = adapter.get_training_config(self.device)["processes"]

    def accumulation(self, batch: int) -> str:
        return str(accumulate(self.adapter.settings, batch * self.processes))

    def settings(self) -> dict[str, str]:
        """Every setting that is the machine's to choose."""
        found = {key: show(value) for key, value in self.adapter.recipe_settings(self.device).items()}
        if found.get(PREFETCH) == "2":  # torch's own
            del found[PREFETCH]
        for key, (place, name) in LOCAL.items():
            path = Path(self.adapter.paths[place]) / name
            if path.is_dir():
                found[key] = str(path)
        if "dataset.name" in found:
            found["dataset.config"] = "null"
        bitsandbytes = any(package.name == "bitsandbytes" and package.ok for package in self.adapter.packages)
        small = self.device.startswith("cuda") and self.adapter.hardware.device == "CUDA" and bitsandbytes
        return found | {"teacher.quantization": "nf4" if small else "none"}

    def __str__(self) -> str:
        hardware = self.adapter.hardware
        if self.device == "cpu":
            return "CPU"
        memory = f", {hardware.memory:.1f} GB" if hardware.memory is not None else ""
        return f"{hardware.device} ({hardware.name}{memory})"


def plan(wish: Wish, adapter: EnvironmentAdapter, probe: Probe) -> Plan:
    """The run that a command line asks for. `probe` measures the largest batch of a recipe."""
    given = with_teachers(wish.asked, wish.config)
    auto = {key: given.pop(key) for key in (BATCH, ACCUMULATION) if given.get(key) in AUTO}
    warmup, _ = given.pop(WARMUP, None), given.pop(CACHE, None)
    if warmup is not None and RATIO in given:
        raise ConfigError(f"--warmup_steps and {RATIO} set the same", "leave one of them out")
    machine = Machine(adapter, given.get("system.device"))
    base = _explicit(wish.config, given)
    folder = Path(wish.output_dir or _folder(base, adapter, wish.quick))

    open_ = _quick(auto) if wish.quick else {}
    if wish.resume is not None and (folder / "recipe.yaml").is_file():
        chosen, why = _as_it_began(wish, auto, machine, folder), "as the run began"
    else:
        chosen, why = _by_machine(wish, given | open_, auto, machine, base, probe)
    open_ = chosen | open_ | wish.asked.teacher
    settings = {key: value for key, value in open_.items() if key not in given and _matters(base, key)} | given
    recipe = load_recipe(wish.config, _words(settings))
    if recipe.system.num_workers == 0 and PREFETCH not in given:
        settings.pop(PREFETCH, None)
    settings, note = _known_length(settings, recipe, machine)
    if warmup is not None:
        settings[RATIO] = _warmup_ratio(warmup, load_recipe(wish.config, _words(settings)))
    if wish.wandb and "wandb" not in recipe.logging.report_to:
        settings["logging.report_to"] = show([*recipe.logging.report_to, "wandb"])
    recipe = load_recipe(wish.config, _words(settings))
    if BATCH in given:
        why = "as given"
    return Plan(recipe, folder, _line(recipe, machine, why) + note)


def _words(settings: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def _explicit(config: str, given: Mapping[str, str]) -> Recipe:
    recipe = load_recipe(config, _words(given))
    if not recipe.explicit.enabled and not recipe.mixture.on:
        raise ConfigError(
            f"recipe {config} has no separate teacher (explicit.enabled is false)",
            f"train it with kava train --config {config}",
        )
    return recipe


def _folder(recipe: Recipe, adapter: EnvironmentAdapter, quick: bool) -> Path:
    name = f"{recipe.about.name or 'run'}_seed_{recipe.system.seed}"
    return Path(adapter.paths["output"]) / (name + "_quick" if quick else name)


def _matters(recipe: Recipe, key: str) -> bool:
    """Whether a setting does anything in this recipe. One that does not is left out, not refused: nobody gave it."""
    return without_effect(recipe, {key: 1}) is None


def _quick(auto: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in QUICK) if key not in auto}


def _asked_for(wish: Wish, auto: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Of the machine's settings those that it was asked for."""
    return {key: value for key, value in found.items() if wish.config == ADAPTIVE or key in auto}


def _as_it_began(wish: Wish, auto: Mapping[str, str], machine: Machine, folder: Path) -> dict[str, str]:
    """What a machine chose when the run began: another one continues with the same, but for what may change."""
    now = _asked_for(wish, auto, machine.settings())
    stored = flatten(load_recipe(folder / "recipe.yaml").to_dict(), "recipe.yaml", None)
    own = (FREE + ".",) if wish.config == ADAPTIVE else ()
    began = {key: show(value) for key, value in stored.items() if key in now or key.startswith(own)}
    return began | {key: value for key, value in now.items() if key.startswith(FREE_TO_CHANGE)}


def _by_machine(
    wish: Wish, given: Mapping[str, str], auto: Mapping[str, str], machine: Machine, base: Recipe, probe: Probe
) -> tuple[dict[str, str], str]:
    """The machine's settings, and why the batch is what it is."""
    found = machine.settings()
    why = "by memory" if machine.device != "cpu" else "without a GPU"
    batch = given.get(BATCH)
    if auto.get(ACCUMULATION) == "probe":
        raise ConfigError("--gradient_accumulation probe: only the batch is measured", "write auto")
    if auto.get(BATCH) == "probe":
        if machine.processes > 1:
            raise ConfigError("--batch_size probe measures one process, and there are several", "give a number")
        trial = {key: value for key, value in _asked_for(wish, auto, found).items() if _matters(base, key)}
        trial |= {key: value for key, value in given.items() if key != "training.epochs"}
        trial |= {BATCH: "1", ACCUMULATION: "1", STEPS: "1"}
        batch, why = str(probe(load_recipe(wish.config, _words(trial)))), "as measured"
    elif batch is None and wish.config != ADAPTIVE and BATCH not in auto:
        batch, why = str(base.training.batch_size), "by the recipe"
    elif batch is not None:
        why = "for --quick_test"
    if batch is not None:
        found |= {BATCH: batch, ACCUMULATION: machine.accumulation(int(batch) if batch.isdigit() else 1)}
    return _asked_for(wish, auto, found), why


def _known_length(settings: Mapping[str, str], recipe: Recipe, machine: Machine) -> tuple[dict[str, str], str]:
    """A stream does not know its end: epochs become updates where subset_size says how long it is."""
    training, size = recipe.training, recipe.dataset.subset_size
    if not recipe.dataset.streaming or training.max_steps is not None or size is None:
        return dict(settings), ""
    at_once = training.batch_size * training.gradient_accumulation_steps * machine.processes
    steps = training.epochs * math.ceil(size / at_once)
    kept = {key: value for key, value in settings.items() if key != "training.epochs"}
    return kept | {STEPS: str(steps)}, f"; {training.epochs} epochs of {size} streamed examples are {steps} updates"


def _warmup_ratio(text: str, recipe: Recipe) -> str:
    """The share of the updates that is exactly so many of them; transformers rounds up."""
    updates = recipe.training.max_steps
    if not text.isdigit():
        raise ConfigError(f"--warmup_steps {text}: not a number of updates")
    if updates is None:
        raise ConfigError(
            "--warmup_steps needs a known number of updates, and this run is measured in epochs",
            "give --max_steps as well, or --warmup_ratio 0.05",
        )
    count = int(text)
    if count >= updates:
        raise ConfigError(f"--warmup_steps {text}: the run has {updates} updates", "warm up for fewer")
    exact = count / updates
    return repr(exact if math.ceil(updates * exact) == count else (count - 0.5) / updates)


def _line(recipe: Recipe, machine: Machine, why: str) -> str:
    training, precision = recipe.training, recipe.system.mixed_precision
    examples = training.batch_size * training.gradient_accumulation_steps * machine.processes
    parts = [
        f"batch {training.batch_size} {why}",
        f"{training.gradient_accumulation_steps} accumulated = {examples} examples per update",
        "float32" if precision == "no" else precision,
    ]
    if recipe.teacher.quantization != "none":
        parts.append(f"teacher {recipe.teacher.quantization}")
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        parts.append(f"teachers {', '.join(t.label for t in recipe.mixture.teachers)} ({recipe.mixture.fusion})")
    return f"{machine}: {', '.join(parts)}"


def use_cache(asked: Mapping[str, str], adapter: EnvironmentAdapter, environ: MutableMapping[str, str]) -> None:
    """--cache_dir, else KAVA_CACHE_PATH where nothing says otherwise, becomes the hub's cache of this process."""
    given = asked.get(CACHE)
    if given is None:
        named = any(place.name == "cache" and place.source in environ for place in adapter.places)
        if not named or any(name in environ for name in ("HF_HOME", *CACHES)):
            return
    folder = str(Path(given).expanduser().resolve()) if given is not None else adapter.paths["cache"]
    move_cache(folder, environ)


def settle(wish: Wish, probe: Probe) -> Plan:
    """`plan` on this machine, with the hub's cache in its place and the GPU's memory limited as the settings say."""
    adapter = create_environment_adapter(quiet=True)
    use_cache(wish.asked.given, adapter, os.environ)
    machine = Machine(adapter, wish.asked.given.get("system.device"))
    if machine.device.startswith("cuda") and machine.processes == 1:
        adapter.limit_memory()
    return plan(wish, adapter, probe)
