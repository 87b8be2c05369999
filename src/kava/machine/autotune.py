"""Settings that fit the machine. Rules, not measurements; environment_config.yaml repeats them in its comments.

batch         base x 1, 2, 4 from 8, 16, 40 GB on (2, 4, 8); below 8 GB and without a GPU: 1
accumulation  micro-batches per update, so that batch x processes x accumulation reaches the target (32), rounded up
workers       one per CPU core, 8 at most
checkpointing on for GPUs below 16 GB
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from kava.errors import ConfigError
from kava.machine.detect import Hardware, choose_precision
from kava.machine.settings import Settings

STEPS = ((8, 1), (16, 2), (40, 4))  # GB, times the base
TOLERANCE = 0.05  # a card sold as 16 GB may show 15.8
LITTLE_MEMORY = 16
MOST_WORKERS = 8
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
AGGREGATION = {  # method -> explicit.aggregation, explicit.use_all_layers
    "cross_layer_aggregation": ("concat", True),
    "weighted": ("weighted", True),
    "last_layer": ("concat", False),
}
RECIPE_KEYS = {
    "system.device": "device", "system.mixed_precision": "mixed_precision", "system.num_workers": "num_workers",
    "training.batch_size": "batch_size", "training.gradient_accumulation_steps": "gradient_accumulation_steps",
    "training.gradient_checkpointing": "gradient_checkpointing", "training.on_oom": "on_oom",
    "explicit.aggregation": "kv_aggregation_method", "explicit.use_all_layers": "use_all_layers",
    "logging.report_to": "report_to", "training.hf.dataloader_pin_memory": "pin_memory",
}  # fmt: skip


def training_config(
    settings: Settings, hardware: Hardware, cpu_cores: int, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Settings that fit, under the guide's names. `dtype` is that of frozen weights; trained ones stay float32."""
    precision, _ = choose_precision(hardware, settings)
    batch = batch_size(settings, hardware)
    processes = world_size(environ)
    accumulation = accumulate(settings, batch * processes)
    aggregation, all_layers = AGGREGATION[settings["model_dimensions.kv_extraction.method"]]
    workers = settings["training.dataloader.num_workers"]
    pin = settings["training.dataloader.pin_memory"]
    return {
        "device": hardware.torch_device,
        "dtype": DTYPES[precision],
        "mixed_precision": {"fp32": "no"}.get(precision, precision),
        "batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "processes": processes,
        "effective_batch_size": batch * processes * accumulation,
        "num_workers": min(cpu_cores, MOST_WORKERS) if workers == "auto" else workers,
        "pin_memory": hardware.torch_device == "cuda" if pin == "auto" else pin,
        "prefetch_factor": settings["training.dataloader.prefetch_factor"],
        "gradient_checkpointing": checkpointing(settings, hardware),
        "torch_compile": settings["training.torch_compile"] is True,
        "memory_fraction": settings["hardware.memory_fraction"],
        "kv_aggregation_method": aggregation,
        "use_all_layers": all_layers,
        "report_to": trackers(settings, environ),
        "fallback_to_cpu": settings.cpu_allowed(),
        "on_no_gpu": "cpu" if settings.cpu_allowed() else "error",
        "on_oom": settings["error_handling.on_oom"],
    }


def world_size(environ: Mapping[str, str]) -> int:
    """The number of processes that torchrun has started; 1 without torchrun."""
    text = environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"WORLD_SIZE = {text} is not a number of processes", "unset it, or start with torchrun")
    return int(text)


def at_least(memory: float | None, gigabytes: float) -> bool:
    """Whether `memory` counts as `gigabytes`, with a tolerance."""
    return memory is not None and memory >= gigabytes * (1 - TOLERANCE)


def batch_size(settings: Settings, hardware: Hardware) -> int:
    """Examples per process and micro-batch."""
    base = int(settings["training.batch_size.base"])
    strategy = settings["training.batch_size.strategy"]
    tuned = settings["training.auto_tune"] and settings["training.batch_size.auto_detect"] and strategy != "fixed"
    memory = hardware.memory if hardware.has_gpu else None
    times = max((factor for gigabytes, factor in STEPS if at_least(memory, gigabytes)), default=0) if tuned else 1
    share = 2 if tuned and strategy == "conservative" else 1
    return min(max(1, base * times // share), int(settings["training.batch_size.max"]))


def accumulate(settings: Settings, at_once: int) -> int:
    """Micro-batches per update when `at_once` examples are computed at a time on all processes together."""
    if not settings["training.gradient_accumulation.auto_compute"]:
        return 1
    return max(1, math.ceil(settings["training.gradient_accumulation.target_batch_size"] / at_once))


def checkpointing(settings: Settings, hardware: Hardware) -> bool:
    """On for small GPUs; off on the CPU, where time is scarcer than memory."""
    chosen = settings["training.gradient_checkpointing"]
    little = hardware.has_gpu and not at_least(hardware.memory, LITTLE_MEMORY)
    return little if chosen == "auto" else bool(chosen)


def trackers(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """The log writers. wandb asks for a login, so `auto` takes it only where WANDB_API_KEY is set."""
    wanted = {name: settings[f"logging.backends.{name}"] for name in ("tensorboard", "wandb")}
    ready = {
        name for name in wanted if importlib.util.find_spec(name) and (name != "wandb" or "WANDB_API_KEY" in environ)
    }
    return [name for name, choice in wanted.items() if choice is True or (choice == "auto" and name in ready)]


def recipe_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A training config in a recipe's keys, section.key; what a recipe does by default is left out."""
    settings = {key: config[name] for key, name in RECIPE_KEYS.items()}
    if config["num_workers"] > 0:
        settings["training.hf.dataloader_prefetch_factor"] = config["prefetch_factor"]
    if config["torch_compile"]:
        settings["training.hf.torch_compile"] = True
    return settings
