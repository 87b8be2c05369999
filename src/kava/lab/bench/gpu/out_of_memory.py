"""Out of memory in the middle of a run: the update is repeated in pieces, and the run ends with the same losses."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kava.config import load_recipe
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.training.folder import LOG
from kava.training.run import train

SHARE = 0.65  # of the memory that the whole batch takes
LIMIT = 1e-4
UPDATES = 3


def run(setup: KitSetup) -> KitFinding:
    """The embedded recipe twice, the second time on a card with less memory than its batch needs."""
    wanted, peak = _run(setup, "whole", None)
    losses, _ = _run(setup, "starved", SmallCard(setup.device, int(SHARE * peak)))
    if "out of memory" not in (setup.scratch / "starved" / "train.log").read_text(encoding="utf-8"):
        raise KitFailure(f"nothing ran out of memory, although {SHARE:.0%} of it was left")
    gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, wanted, strict=True))
    if not gap <= LIMIT:
        raise KitFailure(f"the losses of the updates differ by {gap:.0e} from those of whole batches")
    room = f"{SHARE:.0%} of {peak / 2**20:.4g} MiB" if peak else "an imitation of too little memory"
    text = f"{UPDATES} updates in {room}, losses off by {gap:.0e}"
    return KitFinding(text, {"peak_bytes": peak, "share": SHARE, "gap": gap})


class SmallCard(TrainerCallback):
    """Leaves a run so much memory. On a CPU, which has no such limit, the objective refuses batches of more than half the
    first one's examples, with CUDA's own error."""

    def __init__(self, device: torch.device, room: int):
        self.device, self.room = device, room
        self.largest: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.room / total), self.device)
        else:
            model.register_forward_pre_hook(self._refuse)

    def _refuse(self, _: Any, inputs: tuple[Any, ...]) -> None:
        rows = len(inputs[0]["example_id"])
        self.largest = rows // 2 if self.largest is None else self.largest
        if rows > self.largest:
            raise torch.OutOfMemoryError("out of memory, as a CPU imitates it")


def _run(setup: KitSetup, name: str, card: SmallCard | None) -> tuple[list[float], int]:
    """The loss of each update, and the peak of allocated memory (0 on a CPU)."""
    on_card = setup.device.type == "cuda"
    rows = 16 if setup.tiny else 2048
    settings = {
        "training.max_steps": UPDATES,
        "training.batch_size": rows,
        "training.on_oom": "reduce_batch",
        "training.tokens_per_piece": "none",
        "logging.logging_steps": 1,
        "logging.report_to": "[]",
        "dataset.generator.train_size": UPDATES * rows,
        "dataset.generator.val_size": 4,
        "evaluation.validation_size": 4,
        "evaluation.max_new_tokens": 2,
        "system.device": setup.device.type,
    }
    recipe = load_recipe("embedded", [f"{key}={value}" for key, value in settings.items()])
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
    try:
        train(recipe, setup.scratch / name, quiet=True, callbacks=[] if card is None else [card])
    finally:
        if on_card:
            torch.cuda.set_per_process_memory_fraction(1.0, setup.device)
    peak = torch.cuda.max_memory_reserved(setup.device) if on_card else 0
    return _losses(setup.scratch / name / LOG), peak


def _losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]
