"""transformers.Trainer, taught four things: terms with counts, our checkpoints, generated validation, a stop that saves."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kava.backbone.artifact import write_student
from kava.backbone.card import add_training_state
from kava.config import Recipe
from kava.data.example import stable_hash
from kava.errors import RunError, first_line
from kava.files import make_folder, new_folder, remove, replace_folder
from kava.losses import add
from kava.objective.objective import Objective
from kava.objective.records import Figure, Result, Step
from kava.objective.stages import stage_at
from kava.progress import progress
from kava.training import aux_state, workers
from kava.training.checkpoint import find, rotate
from kava.training.folder import BEST
from kava.training.interrupt import Interrupt
from kava.training.memory import IDLE, pieces_of
from kava.training.processes import main_process_decides, share_out
from kava.training.sharding_trainer import Saved, ShardingTrainer
from kava.training.unread import Computed, Sums, not_finite, read, wide

with redirect_stdout(sys.stderr):  # stdout is for results, and with WANDB_MODE=offline this import prints
    from transformers import PrinterCallback

INCOMING = ".partial-checkpoint"


@dataclass(frozen=True)
class Validation:
    """What is measured on held-out examples (None: it was cut short), and the number that makes a checkpoint the best."""

    measure: Callable[[Step], dict[str, float] | None]
    decides: str
    lower: bool = False


class KavaTrainer(ShardingTrainer):
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
        self.objective, self.recipe, self.tokenizer_to_save = objective, recipe, tokenizer
        super().__init__(model=objective, **trainer)
        self.remove_callback(PrinterCallback)  # our own console says it
        self.model_accepts_loss_kwargs = True  # what transformers before 5.19 reads instead
        self.validation, self.interrupt = validation, interrupt
        self.data_sha256: str | None = None  # None: not known, as of a stream
        self.at_epoch_end = False
        self.pieces = pieces_of(recipe, self.args.world_size, self.args.device)
        self._to_save = Saved()
        self._updates, self._idle = 0, False  # of an epoch; is its last batch one that does not count?
        self._sums, self._counts = Sums(float), Sums(float)
        self._before = (self._sums, self._counts)  # as they were when the update began
        self.epoch = 0  # set by callbacks.Schedule
        self.step = Step()
        self._counted: dict[int, dict[str, float]] = {}  # counts of each piece of the update, by its id()
        self._known: dict[str, float] | None = None
        self.health: dict[str, float] = {}  # numbers for the next log line
        self._computed: list[Computed] = []  # pieces of the present update
        self._figures: dict[str, Figure] = {}  # of the present micro-batch
        self._tokens, self._since = 0, time.perf_counter()
        if self.args.world_size > 1:  # else every process would drop out the same places
            torch.manual_seed(self.args.seed + self.args.process_index)

    # -- the loss ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        self._train_batch_size = self.args.per_device_train_batch_size  # transformers before 5 takes the checkpoint's
        places = self.accelerator.device_placement
        self.accelerator.device_placement = False  # batches are counted and cut on the CPU; a piece moves by itself
        loader = super().get_train_dataloader()
        self.accelerator.device_placement = places
        if self.args.world_size > 1:
            self._idle = self.args.process_index >= share_out(loader, self.args.world_size)
            self._updates = math.ceil(len(loader) / self.args.gradient_accumulation_steps) if self._idle else 0
        return loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one update, and what each term is divided by over all of them and all ranks."""
        if self.state.global_step >= self.state.max_steps:  # resumed behind the last update: only its end is due
            self.control.should_training_stop = True
            return [], {}
        try:
            with workers.fetching():
                batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except RuntimeError as error:
            if not workers.died(error):
                raise
            raise self._lost_worker(error) from error
        update, every = self.state.global_step, self.args.logging_steps
        progress = update / max(1, self.state.max_steps)
        self.step = Step(update, self.epoch, progress, log=update % every == every - 1)
        if self.recipe.latent.stage_share > 0:
            self._begin_stage(update)
        self._before = self._sums.copy(), self._counts.copy()
        if self._idle and (update + 1) % self._updates == 0:
            batches[-1][IDLE] = torch.ones(len(batches[-1]["example_id"]))
        self.pieces.begin(batches)
        self._computed = []
        counts = Sums(float)
        self._counted = {id(p): self.objective.counts(p, self.step) for batch in batches for p in self.pieces.of(batch)}
        for batch in batches:
            for piece in self.pieces.of(batch):
                for name, count in self._counted[id(piece)].items():
                    counts[name] += 0.0 if IDLE in piece else count
            if IDLE not in batch:
                self._tokens += sum(int(batch[name].sum()) for name in ("question_mask", "cot_mask", "tail_mask"))
        self._of_all(counts)
        return batches, {name: count or 1.0 for name, count in counts.items()}  # over nothing: 0, but with a gradient

    def _begin_stage(self, update: int) -> None:
        """Notes the stage of the curriculum for the log; at the beginning of one the optimizer may start anew."""
        latent, most = self.recipe.latent, max(1, self.state.max_steps)
        before, stage = (stage_at(latent, max(0, number) / most) for number in (update - 1, update))
        self.health["stage"] = stage
        if latent.stage_reset and stage != before:
            self.optimizer.state.clear()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        counts = 0.0 if inputs.pop(IDLE, None) is not None else 1.0
        with nullcontext() if self.sharded is None else self.accelerator.autocast():
            result: Result = model(inputs, self.step, self._known)
        loss = add(result.terms, num_items_in_batch) * self.args.world_size * counts  # DDP averages over the ranks
        self._computed.append(Computed.of(loss, result.terms, inputs["example_id"]))
        for term in self._computed[-1].terms:
            self._sums[term.name] = self._sums[term.name] + counts * wide(term.total)  # read when it is logged
            self._counts[term.name] += counts * term.count
        for name, figure in result.health.items() if counts else ():
            self._figures[name] = self._figures[name] + figure if name in self._figures else figure
        return (loss, result) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        def step(piece: Any, is_last: bool) -> torch.Tensor:
            self._known = self._counted.get(id(piece))  # None: cut anew after memory ran out
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                return super(KavaTrainer, self).training_step(model, piece, *rest, **named)

        def undo() -> None:
            model.zero_grad()
            self._sums, self._counts = (sums.copy() for sums in self._before)
            self._counted, self._figures, self._computed = {}, {}, []

        self._figures = {}
        loss = self.pieces.run(inputs, step, undo)
        if self.accelerator.sync_gradients and (piece := not_finite(self._computed)) is not None:
            raise self._not_finite(piece)
        self.health |= {name: float(figure) for name, figure in self._figures.items()}
        return loss

    def _not_finite(self, piece: Computed) -> RunError:
        """The error to raise before the update is made."""
        parts = ", ".join(f"{term.name} {float(term.value()):.4g}" for term in piece.terms)
        known = {stable_hash(name): name for name in getattr(self.train_dataset, "ids", ())}
        ids = ", ".join(str(known.get(i, i)) for i in piece.example_id.tolist()[:8])
        return RunError(
            f"the loss is not finite in update {self.state.global_step + 1} ({parts}); example ids of the batch: {ids}",
            "lower training.learning_rate or the alphas; the last checkpoint is untouched (--resume auto)",
        )

    def _lost_worker(self, error: RuntimeError) -> RunError:
        """The error to raise; what was learnt so far is saved, where one process can do so alone."""
        step, run = self.state.global_step, Path(self.args.output_dir)
        if step and self.args.world_size == 1 and all(saved.step != step for saved in find(run)[0]):
            self._save_checkpoint(self.model, None)
        return RunError(
            f"a process that prepares batches was killed after update {step}, perhaps because memory ran out "
            f"({first_line(error)})",
            f"lower system.num_workers (now {self.args.dataloader_num_workers}) and continue with --resume auto",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._sums = read(self._sums)
            self._of_all(self._sums)
            self._of_all(self._counts)
            logs |= {name: self._sums[name] / self._counts[name] for name in self._sums if self._counts[name]}
            logs |= self.health
            logs["tokens_per_second"] = self.args.world_size * self._tokens / (time.perf_counter() - self._since)
            self._tokens, self._since = 0, time.perf_counter()
            self._sums, self._counts, self.health = Sums(float), Sums(float), {}
        super().log(logs, start_time)

    def _of_all(self, numbers: dict[str, float]) -> None:
        """Sums `numbers` over the processes, which all have the same names."""
        if self.args.world_size > 1 and numbers:
            local = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.args.device)
            numbers.update(zip(numbers, self.accelerator.reduce(local, "sum").tolist(), strict=True))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / INCOMING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers writes into a hidden folder; one rename makes it a checkpoint."""
        step = self.state.global_step
        with progress("saving a checkpoint"):
            self._to_save = self.checkpointed(Path(self._get_output_dir(trial)) / f"checkpoint-{step}")
            super()._save_checkpoint(model, trial)
            self._to_save = Saved()
        self.accelerator.wait_for_everyone()  # each process has put the state of its random numbers there
        if self.args.should_save:
            run = Path(self.args.output_dir)
            name = f"ep{round(self.state.epoch or 0)}" if self.at_epoch_end else f"step{step}"
            add_training_state(run / INCOMING / f"checkpoint-{step}")
            replace_folder(run / INCOMING / f"checkpoint-{step}", run / f"checkpoint-{name}")
            remove(run / INCOMING)
            rotate(run, self.recipe.logging.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:  # every process is asked
            facts = {"processes": self.args.world_size, "effective_batch_size": self.effective_batch_size}
            facts |= {"data_sha256": self.data_sha256}
            self._write(Path(output_dir or self.args.output_dir), self._to_save, **facts)

    def _write(self, folder: Path, saved: Saved, **facts: Any) -> None:
        """The student and what is trained beside it; `facts` go to its card."""
        make_folder(folder)
        aux_state.save(self.objective, folder, saved.aux)  # first: the student's card has the hash of this file, too
        facts |= {"step": self.state.global_step} | ({} if saved.shards is None else {"shards": saved.shards})
        write_student(self.objective.model, self.tokenizer_to_save, self.recipe, folder, saved.weights, **facts)

    @property
    def effective_batch_size(self) -> int:
        """Examples in an update."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained beside the student has a learning rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        beside = self.objective.aux_state()
        own = {id(weight) for name, weight in beside.items() if not name.startswith(aux_state.TRAINING_ONLY)}
        if own and len(optimizer.param_groups) < 3:  # it may be called twice
            for group in list(optimizer.param_groups):
                apart = [weight for weight in group["params"] if id(weight) in own]
                group["params"] = [weight for weight in group["params"] if id(weight) not in own]
                optimizer.add_param_group(group | {"params": apart, "lr": self.recipe.projector.learning_rate})
        return optimizer

    # -- validation ----------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation set; the best student so far becomes best_checkpoint/."""
        before = time.perf_counter()
        step = replace(self.step, epoch=self.epoch)
        run = self.sharded.run if self.sharded is not None else (lambda work: work())
        measured = run(lambda: self.validation.measure(step))
        numbers = main_process_decides(lambda: measured)
        self._since += time.perf_counter() - before  # tokens_per_second speaks of training
        if numbers is None:
            if self.interrupt.signal is not None:  # it came while answers were written: stop here, not an update later
                self.control.should_save = self.control.should_training_stop = True
            return {}
        metrics = {f"eval_{name}": value for name, value in numbers.items()}
        best, value = self.state.best_metric, numbers[self.validation.decides]
        if best is None or (value < best if self.validation.lower else value > best):
            self.state.best_metric = value
            self.save_best(validation=numbers)
        self.log(dict(metrics))
        return metrics

    def save_best(self, **facts: Any) -> None:
        """best_checkpoint/; all processes call it."""
        saved = self.gathered()
        aux = self.objective.aux_state() if saved.aux is None else saved.aux
        saved = saved._replace(aux={n: value for n, value in aux.items() if not n.startswith(aux_state.TRAINING_ONLY)})
        if self.args.should_save:
            with progress("saving the best student"), new_folder(Path(self.args.output_dir) / BEST) as partial:
                self._write(partial, saved, **facts)
