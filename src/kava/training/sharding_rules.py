"""How a run of several processes is sharded, decided before anything is loaded; what fsdp2 cannot do is refused here."""

from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from kava.backbone.load import foreign_model, load_config, num_layers, teacher_model
from kava.config import ModelConfig, Recipe
from kava.errors import ConfigError
from kava.training.processes import shard_world

LARGE = 6.5e9  # parameters from which system.sharding=auto shards: models that are called 7B begin there
ELEMENTWISE = (
    "adamw_torch",
    "adamw_torch_fused",
    "sgd",
    "adagrad",
    "rmsprop",
)  # their moments are cut as the weights are


def sharding_of(recipe: Recipe, processes: int) -> str:
    """none, fsdp2 or fsdp2_whole: what system.sharding means for so many processes."""
    sharding = recipe.system.sharding
    if processes == 1:
        return sharding
    if sharding == "auto":
        sharding = "fsdp2" if any(parameters(model) >= LARGE for model in _live_models(recipe)) else "none"
    if sharding != "none":
        _refuse(recipe, sharding, processes)
    return sharding


def parameters(model: ModelConfig) -> int:
    """How many weights a model has, by its config."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(load_config(model), trust_remote_code=model.trust_remote_code)
    return sum(weight.numel() for weight in lm.parameters())


def _live_models(recipe: Recipe) -> Iterator[ModelConfig]:
    """The student's model, and those of teachers that run beside it."""
    yield recipe.model
    if recipe.mixture.on:
        yield from (foreign_model(spec, recipe.model) for spec in recipe.mixture.teachers if spec.store is None)
    elif recipe.explicit.enabled and recipe.teacher.store is None:
        yield teacher_model(recipe)


def _refuse(recipe: Recipe, sharding: str, processes: int) -> None:
    system, where = recipe.system, f"system.sharding={sharding}"
    quantised = [spec.label for spec in recipe.mixture.teachers if spec.quantization != "none"]
    if recipe.loss.step_decoder > 0:
        raise ConfigError(
            f"{where}: the decoder of steps is not sharded", "set system.sharding=none, or loss.step_decoder=0"
        )
    if not recipe.mixture.on and recipe.explicit.enabled and recipe.teacher.quantization != "none":
        quantised = [recipe.teacher.name or recipe.model.name]
    if system.cpu_offload and quantised:
        raise ConfigError(
            f"system.cpu_offload: the teacher {quantised[0]} is quantised, and quantised weights cannot wait in the CPU's memory",
            "leave system.cpu_offload out, or the teacher's quantization",
        )
    if system.mixed_precision == "fp16":
        raise ConfigError(
            f"{where} and system.mixed_precision=fp16 have not been tried together", "set system.mixed_precision=bf16"
        )
    if recipe.training.optimizer not in ELEMENTWISE:
        raise ConfigError(
            f"training.optimizer={recipe.training.optimizer} keeps moments that are not cut as the weights are ({where})",
            f"known to work in shards: {', '.join(ELEMENTWISE)}",
        )
    if recipe.training.hf.get("torch_compile"):
        raise ConfigError(
            f"training.hf.torch_compile and {where} have not been tried together", "leave torch_compile out"
        )
    if sharding == "fsdp2" and (world := shard_world(processes)) > (layers := num_layers(recipe.model)):
        raise ConfigError(
            f"{where} divides {recipe.model.name} among {world} processes, but it has {layers} layers",
            f"use at most {layers} processes (on each node), or system.sharding=fsdp2_whole",
        )
