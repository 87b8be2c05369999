"""A short run of the embedded recipe: it learns, and how often an update waits for the device."""

import json
from typing import Any

import torch
from transformers import TrainerCallback

from kava.config import load_recipe
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.host_reads import HostReads, counted_reads
from kava.training.folder import BEST, LOG
from kava.training.run import train

BETWEEN_LOGS = 10


def run(setup: KitSetup) -> KitFinding:
    """Trains, validates and saves; the loss has to fall. Host reads are counted over updates that are not logged."""
    updates, rows, problems = (2 * BETWEEN_LOGS, 4, 4) if setup.tiny else (300, 64, 200)
    settings = {
        "training.max_steps": updates,
        "training.batch_size": rows,
        "logging.logging_steps": BETWEEN_LOGS,
        "logging.eval_steps": updates,
        "logging.report_to": "[]",
        "dataset.generator.train_size": 64 if setup.tiny else 20_000,
        "dataset.generator.val_size": problems,
        "evaluation.max_new_tokens": 4 if setup.tiny else 32,
        "system.device": setup.device.type,
    }
    counter = UpdateReads(setup.device)
    folder = setup.scratch / "run"
    recipe = load_recipe("embedded", [f"{key}={value}" for key, value in settings.items()])
    done = train(recipe, folder, quiet=True, callbacks=[counter])
    rows_of_log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows_of_log if "loss" in row]
    speeds = [row["tokens_per_second"] for row in rows_of_log if "tokens_per_second" in row]
    if not (done.finished and (folder / BEST).is_dir()):
        raise KitFailure(f"the run did not end with a {BEST}")
    if not (losses[-1] < losses[0] or setup.tiny):
        raise KitFailure(f"the loss did not fall: {losses[0]:.4g}, then {losses[-1]:.4g}")
    text = (
        f"{done.steps} updates, loss {losses[0]:.3g} -> {losses[-1]:.3g}, accuracy {100 * (done.best or 0):.0f} % of "
        f"{problems}; {speeds[-1]:.0f} tokens/s, {counter.per_update:.1f} host reads per update"
    )
    figures = {"losses": losses, "accuracy": done.best, "tokens_per_second": speeds[-1]}
    return KitFinding(text, {**figures, "host_reads_per_update": counter.per_update})


class UpdateReads(TrainerCallback):
    """Counts the reads of whole updates between two lines of the log."""

    def __init__(self, device: torch.device, updates: int = BETWEEN_LOGS - 3):
        self.device, self.updates = device, updates
        self.reads = HostReads()
        self._block: Any = None

    @property
    def per_update(self) -> float:
        return self.reads.count / self.updates

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        first = BETWEEN_LOGS + 1  # behind the first log line, and behind its first update
        if state.global_step == first:
            self._block = counted_reads(self.device)
            self.reads = self._block.__enter__()
        elif state.global_step == first + self.updates:
            self._block.__exit__(None, None, None)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.reads.paused = True  # the optimizer's own counters are on the CPU, whatever the device

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.reads.paused = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._block is not None and state.global_step < BETWEEN_LOGS + 1 + self.updates:
            self._block.__exit__(None, None, None)
