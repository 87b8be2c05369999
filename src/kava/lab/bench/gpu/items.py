"""What `kava bench gpu` does, in its order: each item is a function `run` of a file here, with a time limit of its own.

No torch at the top: the process that watches over the items only needs their names and limits.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kava.errors import ConfigError
from kava.registry import nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class KitSetup:
    """device; half: the type of two bytes that it computes natively; tiny: toy sizes, as a test on the CPU takes them;
    scratch: a folder that is removed afterwards."""

    device: "torch.device"
    half: "torch.dtype"
    tiny: bool
    scratch: Path


@dataclass(frozen=True)
class KitFinding:
    """What an item saw, in one line and as numbers."""

    text: str
    figures: dict[str, Any] = field(default_factory=dict)


class KitFailure(Exception):
    """Something is not as it has to be: the message says what."""


@dataclass(frozen=True)
class KitItem:
    """seconds: after which it is stopped. An item raises a KitFailure, or a `Skipped` where a package or the card lacks
    what it needs."""

    name: str
    title: str
    seconds: float
    module: str
    arguments: tuple[Any, ...] = ()

    def run(self, setup: KitSetup) -> KitFinding:
        function: Callable[..., KitFinding] = importlib.import_module(f"kava.lab.bench.gpu.{self.module}").run
        return function(setup, *self.arguments)


ITEMS = {
    item.name: item
    for item in (
        KitItem("float32", "losses and gradients in float32 are the CPU's", 40, "precision", ("float32",)),
        KitItem("half", "those of autocast are near the CPU's in float32", 30, "precision", ("half",)),
        KitItem("checkpointing", "gradient checkpointing changes nothing but memory", 30, "checkpointing"),
        KitItem("kernels", "every attention kernel gives what the math kernel gives", 30, "kernels"),
        KitItem("nf4", "a model in NF4 is near the whole one", 40, "nf4"),
        KitItem("out-of-memory", "an update that did not fit is repeated in pieces", 60, "out_of_memory"),
        KitItem("compile", "torch.compile changes nothing", 90, "compiled"),
        KitItem("train-llama-1b", "a training step at the shapes of Llama-3.2-1B", 75, "train_step", ("llama-1b",)),
        KitItem("train-qwen-0.5b", "a training step at the shapes of Qwen2.5-0.5B", 75, "train_step", ("qwen-0.5b",)),
        KitItem("answer", "answering at batch 1 and 32, against the library", 60, "answering"),
        KitItem("extract", "a teacher's entries to disk while it runs", 60, "extraction"),
        KitItem("recipe", "a short run of the embedded recipe", 60, "short_run"),
    )
}


def select_items(names: Sequence[str]) -> list[str]:
    """The items called `names` in the order of ITEMS, all of them where none is named."""
    for name in names:
        if name not in ITEMS:
            raise ConfigError(f"unknown item {name!r} of the GPU kit", nearest(name, list(ITEMS)))
    return [name for name in ITEMS if not names or name in names]
