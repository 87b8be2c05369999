"""Training against separate teachers from Python: what `kava distill` does once its flags are read."""

from pathlib import Path
from typing import Any

from kava.config import Recipe, explain
from kava.config.effects import without_effect
from kava.config.keys import FREE, flatten, nest
from kava.config.load import COMMAND_LINE, OVERRIDES
from kava.config.trust import trusted
from kava.errors import ConfigError
from kava.training.folder import TrainResult
from kava.training.run import as_recipe, train

BATCH, ACCUMULATION = "training.batch_size", "training.gradient_accumulation_steps"
PREFETCH = f"{FREE}.dataloader_prefetch_factor"


def distill(
    recipe: Recipe | str | Path, output_dir: str | Path | None = None, *, machine: Any = None, **options: Any
) -> TrainResult:
    """Trains a student on the keys and values of a separate teacher, or of several; other options are those of `train`.

    `machine`, from create_environment_adapter(), chooses what it recommends (batch size, precision, workers, trackers)
    in place of the recipe's own values; settings given to load_recipe stay.
    """
    recipe = trusted(as_recipe(recipe), options.pop("trust_remote_code", False))
    if not recipe.explicit.enabled and not recipe.mixture.on:
        problem = f"recipe {recipe.about.name or 'run'} has no separate teacher (explicit.enabled is false)"
        raise ConfigError(problem, "train it with kava.train")
    if machine is not None and not hasattr(machine, "recipe_settings"):
        raise ConfigError(f"machine is a {type(machine).__name__}", "give create_environment_adapter()")
    return train(recipe if machine is None else for_machine(recipe, machine), output_dir, **options)


def for_machine(recipe: Recipe, machine: Any) -> Recipe:
    """The recipe with the machine's settings, but for those that were overridden and those without effect here."""
    chosen = {row.key for row in explain(recipe) if row.origin in (COMMAND_LINE, OVERRIDES)}
    if BATCH in chosen:
        chosen.add(ACCUMULATION)  # the machine's accumulation belongs to the machine's batch
    device = None if recipe.system.device == "auto" else recipe.system.device
    values = flatten(recipe.to_dict(), "recipe", None)
    for key, value in machine.recipe_settings(device).items():
        if key not in chosen and without_effect(recipe, {key: 1}) is None:
            values[key] = value
    if values["system.num_workers"] == 0:
        values.pop(PREFETCH, None)  # torch refuses it without workers
    made = Recipe.model_validate(nest(values))
    made._origins = recipe._origins
    return made
