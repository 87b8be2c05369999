"""transformers.Trainer, taught four things: terms with counts, our checkpoints, generated validation, a stop that saves."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kava.backbone.artifact import load_weights, write_student
from kava.config import Recipe
from kava.data.example import stable_hash
from kava.errors import RunError
from kava.files import new_folder, replace_folder
from kava.losses import add
from kava.objectives.latent import LatentObjective
from kava.objectives.tokens import TokensObjective
from kava.objectives.views import Result
from kava.train import own_weights
from kava.train.checkpoint import rotate
from kava.train.interrupt import Interrupt
from kava.train.memory import pieces_of

with redirect_stdout(sys.stderr):  # stdout is for results, and with WANDB_MODE=offline this import prints
    from transformers import PrinterCallback, Trainer

INCOMING = ".partial-checkpoint"
BEST = "best_checkpoint"
Objective = LatentObjective | TokensObjective


@dataclass(frozen=True)
class Validation:
    """What is measured on held-out examples (None: it was cut short), and the number that makes a checkpoint the best."""

    measure: Callable[[], dict[str, float] | None]
    decides: str
    lower: bool = False

    def better(self, found: float, best: float | None) -> bool:
        return best is None or (found < best if self.lower else found > best)


class KavaTrainer(Trainer):
    """The model is the objective: one forward gives the terms of a micro-batch. It knows no method."""

    loss_is_scaled_for_ga = True  # each term is divided by the count of the whole update window, once

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        tokenizer: Any,
        validation: Validation,
        interrupt: Interrupt,
        **trainer: Any,
    ):
        super().__init__(model=objective, **trainer)
        self.remove_callback(PrinterCallback)  # our own console says it
        self.model_accepts_loss_kwargs = True  # what transformers before 5.19 reads instead
        self.objective = objective
        self.recipe = recipe
        self.tokenizer_to_save = tokenizer
        self.validation = validation
        self.interrupt = interrupt
        self.at_epoch_end = False
        self.pieces = pieces_of(recipe, self.args.world_size)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._before: tuple[dict[str, float], dict[str, float]] = ({}, {})
        self._health: dict[str, float] = {}
        self._tokens, self._since = 0, time.perf_counter()

    # -- the loss ------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one update, and what each term is divided by over all of them and all ranks."""
        if self.state.global_step >= self.state.max_steps:  # resumed behind the last update: only its end is due
            self.control.should_training_stop = True
            return [], {}
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.pieces.begin()
        self._before = dict(self._sums), dict(self._counts)
        counts: dict[str, float] = defaultdict(float)
        for batch in batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] += count
            self._tokens += sum(int(batch[name].sum()) for name in ("question_mask", "cot_mask", "tail_mask"))
        if self.args.world_size > 1 and counts:
            names = sorted(counts)
            local = torch.tensor([counts[name] for name in names], dtype=torch.float64, device=device)
            counts = dict(zip(names, self.accelerator.reduce(local, "sum").tolist(), strict=True))
        return batches, dict(counts)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.objective.watch = self.state.global_step % self.args.logging_steps == self.args.logging_steps - 1
        self.objective.update = self.state.global_step
        result: Result = model(inputs)
        loss = add(result.terms, num_items_in_batch) * self.args.world_size  # DDP averages over the ranks
        if not torch.isfinite(loss):
            self._refuse(result, inputs)
        for term in result.terms:
            self._sums[term.name] += float(term.total.detach())
            self._counts[term.name] += term.count
        self._health |= {name: float(value) for name, value in result.health.items()}
        return (loss, result) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        def step(piece: Any) -> torch.Tensor:
            return super(KavaTrainer, self).training_step(model, piece, *rest, **named)

        def undo() -> None:
            model.zero_grad()
            for now, before in zip((self._sums, self._counts), self._before, strict=True):
                now.clear()
                now.update(before)

        return self.pieces.run(inputs, step, undo)

    def _refuse(self, result: Result, inputs: Any) -> None:
        parts = ", ".join(f"{term.name} {float(term.value().detach()):.4g}" for term in result.terms)
        known = {stable_hash(name): name for name in getattr(self.train_dataset, "ids", ())}
        ids = ", ".join(str(known.get(i, i)) for i in inputs["example_id"].tolist()[:8])
        raise RunError(
            f"the loss is not finite in update {self.state.global_step + 1} ({parts}); example ids of the batch: {ids}",
            "lower training.learning_rate or the alphas; the last checkpoint is untouched (--resume auto)",
        )

    def note(self, name: str, value: float) -> None:
        """A number for the next log line."""
        self._health[name] = value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: self._sums[name] / self._counts[name] for name in self._sums if self._counts[name]}
            logs |= self._health
            logs["tokens_per_second"] = self.args.world_size * self._tokens / (time.perf_counter() - self._since)
            self._tokens, self._since = 0, time.perf_counter()
            self._sums.clear()
            self._counts.clear()
            self._health = {}
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / INCOMING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers writes into a hidden folder; one rename makes it a checkpoint."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            run, step = Path(self.args.output_dir), self.state.global_step
            name = f"ep{round(self.state.epoch or 0)}" if self.at_epoch_end else f"step{step}"
            replace_folder(run / INCOMING / f"checkpoint-{step}", run / f"checkpoint-{name}")
            (run / INCOMING).rmdir()
            rotate(run, self.recipe.logging.save_total_limit)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        write_student(
            self.objective.model,
            self.tokenizer_to_save,
            self.recipe,
            Path(output_dir or self.args.output_dir),
            step=self.state.global_step,
        )
        own_weights.save(self.objective, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.objective.model, resume_from_checkpoint)
        own_weights.load(self.objective, Path(resume_from_checkpoint))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained beside the student has a learning rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        own = {id(weight) for weight in self.objective.own().values()}
        if own and len(optimizer.param_groups) < 3:  # it may be called twice
            for group in list(optimizer.param_groups):
                apart = [weight for weight in group["params"] if id(weight) in own]
                group["params"] = [weight for weight in group["params"] if id(weight) not in own]
                rest = {name: value for name, value in group.items() if name != "params"}
                optimizer.add_param_group(rest | {"params": apart, "lr": self.recipe.projector.learning_rate})
        return optimizer

    # -- validation ----------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation set; the best student so far becomes best_checkpoint/."""
        before = time.perf_counter()
        found = self.validation.measure()
        self._since += time.perf_counter() - before  # tokens_per_second speaks of training
        if found is None:
            if self.interrupt.signal is not None:  # it came while answers were written: stop here, not an update later
                self.control.should_save = self.control.should_training_stop = True
            return {}
        metrics = {f"eval_{name}": value for name, value in found.items()}
        best = self.state.best_metric
        value = found[self.validation.decides]
        if self.args.should_save and self.validation.better(value, best):
            self.state.best_metric = value
            self.save_best(validation=found)
        self.log(dict(metrics))
        return metrics

    def save_best(self, **facts: Any) -> None:
        folder = Path(self.args.output_dir) / BEST
        with new_folder(folder) as partial:
            write_student(
                self.objective.model, self.tokenizer_to_save, self.recipe, partial, step=self.state.global_step, **facts
            )
            own_weights.save(self.objective, partial)
