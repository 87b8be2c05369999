"""The part of a checkpoint that each process of system.sharding=fsdp2 writes by itself: weights and the optimizer's moments.

Nothing is gathered, and any number of processes continues: each reads what belongs to its own shards.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.backbone.artifact import WEIGHT
from kava.backbone.shards import listed, read_shards, write_shards
from kava.errors import CheckpointError
from kava.objective.objective import Objective

MOMENT = "moment/"  # before the names of moments in shards/: moment/WEIGHT/PART


def write_state(objective: Objective, optimizer: Any, folder: Path) -> dict[str, str]:
    """Writes shards/ of a checkpoint, and returns the sha256 of its files; all processes call it together."""
    state: dict[str, Tensor] = {WEIGHT + name: weight.detach() for name, weight in objective.model.trained().items()}
    for name, weight in objective.trained().items():
        for part, value in plain(optimizer).state.get(weight, {}).items():
            if value is not None:
                state[f"{MOMENT}{name}/{part}"] = value
    return write_shards(state, folder)


def load_moments(objective: Objective, optimizer: Any, folder: Path) -> None:
    """Gives the optimizer the moments in shards/, of whole weights or of shards."""
    optimizer, weights, moments = plain(optimizer), objective.trained(), dict[str, dict[str, Tensor]]()
    for key, (shape, dtype) in listed(folder).items():
        name, _, part = key.removeprefix(MOMENT).rpartition("/")
        if key.startswith(MOMENT) and name not in weights:
            raise CheckpointError(
                f"{folder}: a moment of {name}, which is not trained", "continue with the same settings"
            )
        if key.startswith(MOMENT):
            weight = weights[name].detach()
            alike = shape == weight.shape
            moments.setdefault(name, {})[part] = (
                torch.zeros_like(weight, dtype=dtype) if alike else torch.zeros(shape, dtype=dtype)
            )
    read_shards(folder, {f"{MOMENT}{name}/{part}": value for name, of in moments.items() for part, value in of.items()})
    saved, names = optimizer.state_dict(), {id(weight): name for name, weight in weights.items()}
    for group, held in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for number, weight in zip(group["params"], held["params"], strict=True):
            if names[id(weight)] in moments:
                saved["state"][number] = moments[names[id(weight)]]
    optimizer.load_state_dict(saved)


def plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]
