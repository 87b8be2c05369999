"""transformers.TrainingArguments from a recipe, for every supported version."""

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from kava.config import Recipe
from kava.errors import ConfigError
from kava.infer.student import pick_device

log = logging.getLogger("kava.train")
INSTALL = {"tensorboard": "pip install 'kava[track]'", "wandb": "pip install wandb", "trackio": "pip install trackio"}


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """TrainingArguments; saving and validation are scheduled by `callbacks.Schedule`, so their strategies are off."""
    training, system, logs = recipe.training, recipe.system, recipe.logging
    _refuse_other_wrappers(recipe)
    _refuse_half_precision_on_cpu(recipe)
    _set_up_trackers(recipe, folder)
    wanted: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "optim": training.optimizer,
        "lr_scheduler_type": training.lr_scheduler,
        "max_grad_norm": training.gradient_clipping,
        "logging_steps": logs.logging_steps,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": list(logs.report_to) or "none",
        "project": logs.project,
        "seed": system.seed,
        "data_seed": system.seed,
        "bf16": system.mixed_precision == "bf16",
        "fp16": system.mixed_precision == "fp16",
        "use_cpu": pick_device(system.device).type == "cpu",  # also for "auto" on a machine without a GPU
        "dataloader_num_workers": system.num_workers,
        "dataloader_pin_memory": torch.cuda.is_available() and system.device != "cpu",
        "dataloader_drop_last": recipe.rkv.shuffle == "examples",  # a lone sample has no partner
        "remove_unused_columns": False,
        "label_names": [],
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # the trainer refuses such a loss; this would read every micro-batch's
        "ddp_find_unused_parameters": False,
        "ddp_backend": _backend(recipe),
        "accelerator_config": {"dispatch_batches": False if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None},
        **training.hf,
        "logging_dir": str(folder / "logs"),
    }
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown := sorted(set(training.hf) - known):
        raise ConfigError(f"training.hf: this transformers has no TrainingArguments field {', '.join(unknown)}")
    wanted["warmup_ratio" if "warmup_ratio" in known else "warmup_steps"] = training.warmup_ratio
    arguments = TrainingArguments(**{name: value for name, value in wanted.items() if name in known})
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process uses one GPU; torchrun starts more. Never DataParallel.
    return arguments


def _refuse_half_precision_on_cpu(recipe: Recipe) -> None:
    """Raises for fp16 on a CPU, where transformers would compute in float32 without a word."""
    if recipe.system.mixed_precision == "fp16" and pick_device(recipe.system.device).type == "cpu":
        raise ConfigError(
            "system.mixed_precision is fp16, which needs a GPU, and this run is on the CPU",
            "set system.mixed_precision=bf16 or no",
        )


def _refuse_other_wrappers(recipe: Recipe) -> None:
    """Raises where `accelerate launch` would wrap the model with FSDP, DeepSpeed or Megatron."""
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() not in ("false", "0", ""):
            raise ConfigError(
                f"{name} is set: wrapped by accelerate, a layer's keys and values would reach the loss behind its back",
                "start with torchrun; system.sharding=fsdp2 shards the model layer by layer",
            )


def _backend(recipe: Recipe) -> str | None:
    """Shards on a GPU may have parts on the CPU, which need a way of their own; None: as torch chooses."""
    sharded = recipe.system.sharding != "none" and pick_device(recipe.system.device).type == "cuda"
    return "cuda:nccl,cpu:gloo" if sharded else None


def _set_up_trackers(recipe: Recipe, folder: Path) -> None:
    for tracker in recipe.logging.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(
                f"logging.report_to names {tracker}, which is not installed",
                f"{INSTALL.get(tracker, 'pip install ' + tracker)}, or set logging.report_to=[]",
            )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs")
    os.environ.setdefault("WANDB_PROJECT", recipe.logging.project)
    os.environ.setdefault("WANDB_DIR", str(folder))
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    if "wandb" in recipe.logging.report_to and not _wandb_login():
        os.environ.setdefault("WANDB_MODE", "offline")  # without a login it would ask, which stops a batch job
        log.warning("wandb: no login found, so it writes to %s; send it later with: wandb sync", folder / "wandb")


def _wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))  # of a user without a home: no such file
    return "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8"))
