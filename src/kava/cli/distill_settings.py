"""From a command line of `kava distill` to a run: recipe, folder, and one line on what was chosen.

What is typed wins. With the recipe `adaptive` this machine sets everything else that depends on it (see `kava env`); with
any other recipe it sets only the batch size or accumulation that is written as `auto` or `probe`.
"""

import math
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from kava.cli.distill_flags import FlagSettings
from kava.cli.distill_table import AUTO, CACHE, WARMUP
from kava.cli.distill_teachers import add_effective, with_teachers
from kava.cli.train import QUICK
from kava.config import Recipe, load_recipe, show
from kava.config.compare import FREE_TO_CHANGE
from kava.config.keys import FREE, flatten
from kava.data.hub import CACHES, move_cache
from kava.errors import ConfigError
from kava.machine.adapter import EnvironmentAdapter, create_environment_adapter
from kava.machine.autotune import accumulate
from kava.outputs import as_path, check_folder

ADAPTIVE = "adaptive"
RATIO = "training.warmup_ratio"
PREFETCH = f"{FREE}.dataloader_prefetch_factor"
BATCH, ACCUMULATION, STEPS = "training.batch_size", "training.gradient_accumulation_steps", "training.max_steps"
LOCAL = {  # the folders that the guides download to; used where they exist
    "teacher.name": ("models", "qwen-1.5b-teacher"),
    "model.name": ("models", "qwen-0.5b-student"),
    "dataset.name": ("data", "gsm8k/train"),
}
Probe = Callable[[Recipe], int]


@dataclass(frozen=True)
class DistillRequest:
    """A parsed command line: the verb's own flags, and the settings that the table's flags stand for."""

    flags: FlagSettings = field(default_factory=FlagSettings)
    config: str = ADAPTIVE
    output_dir: str | None = None
    resume: str | None = None
    quick: bool = False
    wandb: bool = False


@dataclass(frozen=True)
class DistillRun:
    """What will be trained, in which folder, and a line on what was chosen and why."""

    recipe: Recipe
    folder: Path
    line: str


class MachineChoice:
    """What this machine recommends, as settings of a recipe. Raises where the only device is a CPU that is forbidden."""

    def __init__(self, adapter: EnvironmentAdapter, device: str | None = None):
        self.adapter = adapter
        self.device = adapter.device_for_training(device)
        self.processes: int = adapter.get_training_config(self.device)["processes"]

    def settings(self) -> dict[str, str]:
        """Every setting that depends on the machine."""
        chosen = {key: show(value) for key, value in self.adapter.recipe_settings(self.device).items()}
        if chosen.get(PREFETCH) == "2":  # torch's default
            del chosen[PREFETCH]
        folders = {key: Path(self.adapter.paths[place]) / name for key, (place, name) in LOCAL.items()}
        chosen |= {key: str(folder) for key, folder in folders.items() if folder.is_dir()}
        if "dataset.name" in chosen:
            chosen["dataset.config"] = "null"
        bitsandbytes = any(package.name == "bitsandbytes" and package.ok for package in self.adapter.packages)
        quantized = self.device.startswith("cuda") and self.adapter.hardware.device == "CUDA" and bitsandbytes
        return chosen | {"teacher.quantization": "nf4" if quantized else "none"}

    def __str__(self) -> str:
        hardware = self.adapter.hardware
        if self.device == "cpu":
            return "CPU"
        memory = f", {hardware.memory:.1f} GB" if hardware.memory is not None else ""
        return f"{hardware.device} ({hardware.name}{memory})"


def resolve(request: DistillRequest, adapter: EnvironmentAdapter, probe: Probe) -> DistillRun:
    """The run that a command line describes, on the machine of `adapter`; `probe` measures a recipe's largest batch."""
    typed = with_teachers(request.flags, request.config)
    auto = {key: typed.pop(key) for key in (BATCH, ACCUMULATION) if typed.get(key) in AUTO}
    warmup, _ = typed.pop(WARMUP, None), typed.pop(CACHE, None)
    if warmup is not None and RATIO in typed:
        raise ConfigError(f"--warmup_steps and {RATIO} set the same", "leave one of them out")
    machine = MachineChoice(adapter, typed.get("system.device"))
    base = load_recipe(request.config, _words(typed))
    if not base.explicit.enabled and not base.mixture.on:
        message = f"recipe {request.config} has no separate teacher (explicit.enabled is false)"
        raise ConfigError(message, f"train it with kava train --config {request.config}")
    name = f"{base.about.name or 'run'}_seed_{base.system.seed}{'_quick' if request.quick else ''}"
    folder = as_path("--output_dir", request.output_dir) or Path(adapter.paths["output"]) / name
    if request.output_dir is not None:
        check_folder("--output_dir", folder)  # before a batch size is measured

    words = (word.split("=") for word in QUICK if request.quick)
    quick = {key: value for key, value in words if key not in auto}
    chosen, why = machine.settings(), "as the run began"
    open_keys = set(chosen) if request.config == ADAPTIVE else set(auto)  # the machine's to set
    if request.resume is not None and (folder / "recipe.yaml").is_file():
        chosen = _as_it_began(chosen, open_keys, request.config == ADAPTIVE, folder)
    else:
        batch, why = _batch(request.config, quick | typed, auto, machine, base, probe)
        if batch is not None:
            examples = machine.processes * (int(batch) if batch.isdigit() else 1)
            chosen |= {BATCH: batch, ACCUMULATION: str(accumulate(adapter.settings, examples))}
        chosen = {key: value for key, value in chosen.items() if key in open_keys}
    settings = add_effective(typed, chosen | quick | request.flags.teacher, base)
    recipe = load_recipe(request.config, _words(settings))

    if recipe.system.num_workers == 0 and PREFETCH not in typed:
        settings.pop(PREFETCH, None)
    updates, note = _updates(recipe, machine)
    if note:
        settings[STEPS] = str(updates)
        settings.pop("training.epochs", None)
    if warmup is not None:
        settings[RATIO] = _warmup_ratio(warmup, updates)
    if request.wandb and "wandb" not in recipe.logging.report_to:
        settings["logging.report_to"] = show([*recipe.logging.report_to, "wandb"])
    recipe = load_recipe(request.config, _words(settings))
    return DistillRun(recipe, folder, _line(recipe, machine, "as given" if BATCH in typed else why) + note)


def _words(settings: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def _as_it_began(chosen: Mapping[str, str], keys: set[str], adaptive: bool, folder: Path) -> dict[str, str]:
    """The machine's settings stored when the run began; those of this machine only where they may change in between."""
    stored = flatten(load_recipe(folder / "recipe.yaml").to_dict(), "recipe.yaml", None)
    began = [key for key in stored if key in keys or (adaptive and key.startswith(FREE + "."))]
    changed = {key: chosen[key] for key in keys if key.startswith(FREE_TO_CHANGE)}
    return {key: show(stored[key]) for key in began} | changed


def _batch(
    config: str, typed: Mapping[str, str], auto: Mapping[str, str], machine: MachineChoice, base: Recipe, probe: Probe
) -> tuple[str | None, str]:
    """The batch size (None: the machine's table decides) and why."""
    if auto.get(ACCUMULATION) == "probe":
        raise ConfigError("--gradient_accumulation probe: only the batch is measured", "write auto")
    if auto.get(BATCH) == "probe":
        if machine.processes > 1:
            raise ConfigError("--batch_size probe measures one process, and there are several", "give a number")
        chosen = machine.settings() if config == ADAPTIVE else {}
        trial = {key: value for key, value in typed.items() if key != "training.epochs"}
        trial = add_effective(trial, chosen, base) | {BATCH: "1", ACCUMULATION: "1", STEPS: "1"}
        return str(probe(load_recipe(config, _words(trial)))), "as measured"
    if BATCH in typed:
        return typed[BATCH], "for --quick_test"
    if config != ADAPTIVE and BATCH not in auto:
        return str(base.training.batch_size), "by the recipe"
    return None, "by memory" if machine.device != "cpu" else "without a GPU"


def _updates(recipe: Recipe, machine: MachineChoice) -> tuple[int | None, str]:
    """The number of updates, if it is known; a note where epochs of a stream became updates (dataset.subset_size)."""
    training, size = recipe.training, recipe.dataset.subset_size
    if not recipe.dataset.streaming or training.max_steps is not None or size is None:
        return training.max_steps, ""
    examples = training.batch_size * training.gradient_accumulation_steps * machine.processes
    updates = training.epochs * math.ceil(size / examples)
    return updates, f"; {training.epochs} epochs of {size} streamed examples are {updates} updates"


def _warmup_ratio(text: str, updates: int | None) -> str:
    """The share of the updates that transformers, which rounds up, turns into exactly `text` updates of warm-up."""
    if not text.isdigit():
        raise ConfigError(f"--warmup_steps {text}: not a number of updates")
    if updates is None:
        message = "--warmup_steps needs a known number of updates, and this run is measured in epochs"
        raise ConfigError(message, "give --max_steps as well, or --warmup_ratio 0.05")
    count = int(text)
    if count >= updates:
        raise ConfigError(f"--warmup_steps {text}: the run has {updates} updates", "warm up for fewer")
    exact = count / updates
    return repr(exact if math.ceil(updates * exact) == count else (count - 0.5) / updates)


def _line(recipe: Recipe, machine: MachineChoice, why: str) -> str:
    training, precision = recipe.training, recipe.system.mixed_precision
    examples = training.batch_size * training.gradient_accumulation_steps * machine.processes
    update = f"{training.gradient_accumulation_steps} accumulated = {examples} examples per update"
    parts = [f"batch {training.batch_size} {why}", update, "float32" if precision == "no" else precision]
    if recipe.teacher.quantization != "none":
        parts.append(f"teacher {recipe.teacher.quantization}")
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        parts.append(f"teachers {', '.join(t.label for t in recipe.mixture.teachers)} ({recipe.mixture.fusion})")
    return f"{machine}: {', '.join(parts)}"


def use_cache(typed: Mapping[str, str], adapter: EnvironmentAdapter, environ: MutableMapping[str, str]) -> None:
    """Make --cache_dir, else KAVA_CACHE_PATH where no variable of the hub is set, the hub's cache of this process."""
    folder = typed.get(CACHE)
    if folder is not None:
        move_cache(str(Path(folder).expanduser().resolve()), environ)
        return
    configured = any(place.name == "cache" and place.source in environ for place in adapter.places)
    if configured and not any(name in environ for name in ("HF_HOME", *CACHES)):
        move_cache(adapter.paths["cache"], environ)


def prepared_machine(request: DistillRequest) -> EnvironmentAdapter:
    """This machine, with the hub's cache moved and the GPU's memory limited as its settings say."""
    adapter = create_environment_adapter(quiet=True)
    use_cache(request.flags.typed, adapter, os.environ)
    machine = MachineChoice(adapter, request.flags.typed.get("system.device"))
    if machine.device.startswith("cuda") and machine.processes == 1:
        adapter.limit_memory()
    return adapter
