"""The part of the trainer that puts its model into shards, and gathers or writes them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from kava.backbone.artifact import Weights
from kava.config import Recipe
from kava.training.restore import RestoringTrainer
from kava.training.sharded_checkpoint import write_state
from kava.training.sharding import Sharded, follow_shards, whole_tensor


class Saved(NamedTuple):
    """What is written of a sharded objective; None: what the objective itself has.

    shards: sha256 of the files in shards/, where the trained weights are there already.
    """

    weights: Weights | None = None
    aux: dict[str, torch.Tensor] | None = None
    shards: dict[str, str] | None = None


class ShardingTrainer(RestoringTrainer):
    """transformers.Trainer with system.sharding."""

    recipe: Recipe
    sharded: Sharded | None = None

    @property
    def _shards_its_model(self) -> bool:
        return self.recipe.system.sharding != "none" and self.args.world_size > 1

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self._shards_its_model:  # which is moved part by part
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return self.sharded or super()._wrap_model(model, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self._shards_its_model and self.sharded is None:
            self.sharded = Sharded(self.objective, self.args.device, self.recipe.system)  # by now it has its weights
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.sharded is not None:
            follow_shards(optimizer, gather=not self.sharded.by_layer)
            clip = self.accelerator.clip_grad_norm_
            self.accelerator.clip_grad_norm_ = lambda *args, **named: whole_tensor(clip(*args, **named))
        return optimizer

    def gathered(self) -> Saved:
        """The student whole, in the first process; all processes call it."""
        return Saved() if self.sharded is None else Saved(*self.sharded.gathered())

    def checkpointed(self, folder: Path) -> Saved:
        """What a checkpoint has: layer by layer each process writes its own shards; all processes call it."""
        if self.sharded is None or not self.sharded.by_layer:
            return self.gathered()
        return Saved(*self.sharded.named(), write_state(self.objective, self.optimizer, folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded is not None and not self.sharded.by_layer and not self.args.should_save:
            self.optimizer.state_dict()  # the first process cannot put the shards together alone
        super()._save_optimizer_and_scheduler(output_dir)

    def consolidate(self) -> None:
        """After the last update: the first process has the objective with all its weights; all processes call it."""
        if self.sharded is not None:
            self.sharded.consolidate()
