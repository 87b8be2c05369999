"""The part of the trainer that loads a checkpoint: each file by its own rule, an error about one as one line."""

import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from kava.backbone.artifact import load_weights
from kava.backbone.card import SHARDS, check_files
from kava.data.stream import EncodedStream, Share
from kava.errors import CheckpointError, first_line
from kava.objective.objective import Objective
from kava.training import aux_state
from kava.training.checkpoint import PICKLES
from kava.training.sharded_checkpoint import load_moments

with redirect_stdout(sys.stderr):  # stdout is for results, and with WANDB_MODE=offline this import prints
    from transformers import Trainer

log = logging.getLogger("kava.train")
SCALER = "scaler.pt"


@contextmanager
def restoring(what: Path) -> Iterator[None]:
    """Turns an error about a state that does not fit, or is none, into one line that names the file."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        hint = "the file is torn or of another run: delete this checkpoint, --resume auto then takes the one before"
        raise CheckpointError(f"{what} cannot be restored ({first_line(error)[:100]})", hint) from error


class RestoringTrainer(Trainer):
    """transformers.Trainer that continues from our checkpoints."""

    objective: Objective

    def share_stream(self) -> None:
        """Tells a stream which rows this process uses, and which batches the run has used before."""
        if isinstance(self.train_dataset, EncodedStream):
            args, steps = self.args, self.state.global_step
            self.train_dataset.share = Share(
                args.per_device_train_batch_size, args.process_index, args.world_size,
                done=steps * args.gradient_accumulation_steps,
            )  # fmt: skip

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        check_files(resume_from_checkpoint)
        load_weights(self.objective.model, resume_from_checkpoint)
        aux_state.load(self.objective, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A checkpoint of another number of processes has none for this one: it draws anew, not what was drawn before."""
        args = self.args
        name = f"rng_state_{args.process_index}.pth" if args.world_size > 1 else "rng_state.pth"
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            torch.manual_seed(args.seed + self.state.global_step * args.world_size + args.process_index)
        else:
            with restoring(Path(checkpoint or "") / name):
                super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(Path(checkpoint or "") / " or ".join(PICKLES)):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and (Path(checkpoint) / SHARDS).is_dir():
                load_moments(self.objective, self.optimizer, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None:
            with restoring(Path(checkpoint or "") / SCALER):
                super()._load_scaler(checkpoint)
        elif checkpoint is not None and (Path(checkpoint) / SCALER).exists():
            log.warning("%s/%s is not read: only fp16 has a scaler", checkpoint, SCALER)
