"""Run as a process: the largest memory of a training up to its second update, above what the imports take; in bytes.

python measured_memory.py RECIPE ROWS WORDS section.key=value ...
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft  # noqa: F401
from transformers import Trainer, TrainerCallback  # noqa: F401

from kava.backbone.silence_libraries import silence_libraries
from kava.config import load_recipe
from kava.training import method_line, trainer  # noqa: F401
from kava.training.run import train


def resident(name: str) -> int:
    """VmRSS, or VmHWM since it was last reset, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Second(TrainerCallback):
    """Prints the peak of the first two updates and ends the process: what follows, files, is not asked for."""

    def __init__(self, base: int):
        self.base = base

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            print(resident("VmHWM") - self.base, flush=True)
            os._exit(0)


def rows(count: int, words: int) -> list[dict[str, Any]]:
    """Different questions of one length."""
    return [{"question": f"{i} " + "a " * words, "steps": ["b " * words], "answer": "1"} for i in range(count)]


if __name__ == "__main__":
    silence_libraries()
    recipe, count, words, *settings = sys.argv[1:]
    data = rows(int(count), int(words))
    with tempfile.TemporaryDirectory() as folder:
        small = ["training.max_steps=1", "logging.report_to=[]", "system.device=cpu", "training.batch_size=2"]
        small += ["dataset.generator.train_size=8", "dataset.generator.val_size=1", "evaluation.max_new_tokens=1"]
        train(load_recipe(recipe, small), Path(folder) / "small", quiet=True)  # what it imports on its way are imports
        run = Second(resident("VmRSS"))
        train(load_recipe(recipe, settings), Path(folder) / "run", quiet=True, train_data=data, validation_data=data[:1],
              callbacks=[run])  # fmt: skip
