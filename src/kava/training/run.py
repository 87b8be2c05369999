"""One training run, from a recipe to best_checkpoint/."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kava.backbone.card import read_card
from kava.backbone.load import build_model
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe, load_recipe
from kava.config.trust import code_allowed, trusted
from kava.console import VisibleFormatter
from kava.data.cards import in_words
from kava.errors import ConfigError
from kava.files import open_append, write_json
from kava.infer.student import device_name, pick_device
from kava.outputs import as_path
from kava.progress import LogLines, silent
from kava.training import checkpoint, folder, guide_files
from kava.training.arguments import training_arguments
from kava.training.callbacks import Console, GradientNorms, Journal, Schedule
from kava.training.data import Data, MemoryData, check_positions, load_data
from kava.training.folder import BEST, TrainResult
from kava.training.interrupt import Interrupt
from kava.training.memory import check_budget
from kava.training.method_line import Line, explicit_line, latent_line
from kava.training.processes import batch_layout, check_variables, is_main_process, main_process_decides
from kava.training.sharding_rules import sharding_of
from kava.training.trainer import KavaTrainer
from kava.training.workers import ended_afterwards, more_than_cores

log = logging.getLogger("kava.train")


def train(
    recipe: Recipe | str | Path,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    *,
    train_data: Any = None,
    validation_data: Any = None,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    trust_remote_code: bool = False,
) -> TrainResult:
    """Trains a student and returns what the run left in its folder: the same files as `kava train`.

    recipe          a Recipe, the name of a shipped one or a YAML file
    output_dir      the run's folder; None: outputs/<recipe>_seed_<seed>
    resume          "auto" continues the folder's newest whole checkpoint, a path that checkpoint; None: a new run
    quiet           print warnings only
    train_data      rows in place of the recipe's data set: [{"question": ..., "steps": [...], "answer": ...}, ...]
    validation_data rows to validate on; None: the data set's own, or some held out of the training rows
    callbacks       transformers.TrainerCallback, called after kava's own
    trust_remote_code    run code that comes with the models; a recipe's file can only ask for it
    """
    recipe, callbacks = trusted(as_recipe(recipe), trust_remote_code), _checked_callbacks(callbacks)
    memory, resume = MemoryData(train_data, validation_data), None if resume is None else str(resume)
    recipe = memory.recipe(recipe)
    run = as_path("output_dir", output_dir) or folder.default_folder(recipe)
    silence_libraries()
    check_variables(os.environ)
    args = training_arguments(recipe, run)  # under torchrun the process group is set up here
    with silent(quiet), ExitStack() as stack:
        stack.enter_context(code_allowed())
        sharding = main_process_decides(partial(sharding_of, recipe, args.world_size))  # may read configs with code
        recipe = recipe.changed("system", sharding=sharding)

        def claim() -> tuple[Path | None, list[str]]:
            stack.enter_context(folder.claimed(run, recipe, resume))
            return checkpoint.choose(run, resume, recipe) if resume else (None, [])

        start, notes = main_process_decides(claim)
        stack.enter_context(_open_log(run / folder.TRAIN_LOG, quiet))
        for note in notes:
            log.warning(note)
        if start is not None and (result := folder.finished_run(run)) is not None:
            log.info("nothing to do: the run in %s is finished", run)
            return result
        if resume:
            log.info(f"continuing from {start}" if start else "no checkpoint yet: starting from the beginning")
        _set_batch_layout(args, recipe, start)
        return _Run(run, start, quiet, args, memory, callbacks).train(recipe)


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A Recipe as it is; a name or a file loaded."""
    if not isinstance(recipe, Recipe | str | Path):
        raise ConfigError(f"a {type(recipe).__name__} is no recipe", 'give load_recipe("embedded"), or a name or path')
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _checked_callbacks(callbacks: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks is a {type(callbacks).__name__}, not a list", "write callbacks=[...]")
    for place, callback in enumerate(callbacks):
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            raise ConfigError(f"callbacks[{place}] is a {kind.__name__}, not a transformers.TrainerCallback")
    return callbacks


def _set_batch_layout(args: Any, recipe: Recipe, start: Path | None) -> None:
    """Keeps the examples per update of the run that is resumed, also with another number of processes."""
    examples = None if start is None else read_card(start).effective_batch_size  # None in older checkpoints
    layout = batch_layout(recipe, args.world_size, examples)
    if layout != (args.per_device_train_batch_size, args.gradient_accumulation_steps):
        sizes = (args.world_size, *layout, layout.examples(args.world_size))
        what = "going on with %d processes of %d examples x %d micro-batches"
        log.info(f"{what}, so that an update has %d examples as before", *sizes)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = layout


@dataclass(frozen=True)
class _Run:
    """What stays the same from building the model to closing the run."""

    folder: Path
    start: Path | None
    quiet: bool
    args: Any
    memory: MemoryData
    callbacks: Sequence[Any]

    def train(self, recipe: Recipe) -> TrainResult:
        from transformers import set_seed

        if pick_device(recipe.system.device).type == "cpu":
            torch.set_flush_denormal(True)  # subnormal numbers change nothing here and take a fifth of a step
        set_seed(recipe.system.seed)
        model, tokenizer = build_model(recipe)
        data = load_data(recipe, tokenizer, self.memory)
        check_positions(model, data.train, model.latent.num_tokens, stages=recipe.latent.stage_share > 0)
        check_budget(recipe, data.train)
        if recipe.rkv.full_slots:  # as many latents as the longest chain of thought has tokens
            recipe = recipe.changed("latent", num_tokens=int(data.train.lengths("cot").max()))
            model.latent = recipe.latent
        interrupt = Interrupt()
        make_line = explicit_line if recipe.explicit.enabled else latent_line
        line = make_line(recipe, model, tokenizer, data, self.args.device, interrupt.look)

        with interrupt:
            trainer = self.trainer(recipe, line, tokenizer, data, interrupt)
            main_process_decides(lambda: self.describe(data, trainer))
            began = time.perf_counter()
            with ended_afterwards():
                trainer.train(resume_from_checkpoint=str(self.start) if self.start else None)
            seconds = time.perf_counter() - began
            code = interrupt.exit_code  # of a signal from now on nothing is left to save
            no_best = not main_process_decides((self.folder / BEST).exists)
            if code == 0 and no_best:  # nothing to validate on
                trainer.save_best(validation=None)
            if code == 0 and line.finish is not None:
                trainer.consolidate()
                if is_main_process():
                    line.finish(self.folder)
            if is_main_process():
                self.close(trainer, code == 0, seconds)
            getattr(trainer, "end", lambda: None)()
        state, metric = trainer.state, trainer.validation.decides
        return TrainResult(self.folder, state.global_step, metric, state.best_metric, code)

    def trainer(self, recipe: Recipe, line: Line, tokenizer: Any, data: Data, interrupt: Interrupt) -> KavaTrainer:
        options = {"args": self.args, "train_dataset": data.train, "data_collator": line.collate}
        trainer = KavaTrainer(line.objective, recipe, tokenizer, line.validation, interrupt, **options)
        trainer.data_sha256 = data.card.get("sha256")
        own: list[Any] = [Schedule(trainer, interrupt), GradientNorms(trainer), Journal(self.folder / folder.LOG)]
        if recipe.explicit.enabled:
            own += [guide_files.TrainingLog(self.folder / guide_files.LOG), guide_files.GuideConsole()]
        else:
            own.append(Console())
        for callback in (*own, *line.callbacks, *self.callbacks):
            trainer.add_callback(callback)
        return trainer

    def describe(self, data: Data, trainer: KavaTrainer) -> None:
        """Writes recipe.yaml, meta.json and data_card.json, and logs what is trained on what."""
        objective, recipe, args = trainer.objective, trainer.recipe, trainer.args
        trained, processes = objective.trained(), args.world_size
        facts = {
            "data": data.card,
            "device": device_name(args.device),
            "threads": torch.get_num_threads(),
            "trained_names": len(trained),
            "trained_parameters": sum(weight.numel() for weight in trained.values()),
            "all_parameters": sum(weight.numel() for weight in objective.parameters()),
            "processes": processes,
            "sharding": recipe.system.sharding if processes > 1 else "none",
            "effective_batch_size": trainer.effective_batch_size,
        }
        if self.start is not None:
            folder.refuse_other_data(self.start, data.card)
            folder.bring_best(self.start, self.folder)
            facts |= {"continued_from": str(self.start)}
        folder.describe(self.folder, recipe, facts)
        write_json(self.folder / "data_card.json", data.card)
        log.info("%s: %s", recipe.about.name or "run", in_words(data.card))
        counts = (facts["trained_parameters"], facts["all_parameters"], facts["device"])
        log.info("training {:,} of {:,} parameters on {}".format(*counts))
        several = "" if processes == 1 else f"{processes} processes x "
        sizes = (facts["effective_batch_size"], args.per_device_train_batch_size, args.gradient_accumulation_steps)
        sharding = "" if processes == 1 else f", sharding {facts['sharding']}"
        log.info(f"an update: %d examples = {several}%d x %d micro-batches{sharding}", *sizes)
        if note := more_than_cores(args.dataloader_num_workers * processes):
            log.info(note)
        if recipe.loss.std_scope == "batch":
            log.warning("loss.std_scope is batch, as in the parents' code: the loss depends on how batches are split")
        no_result = data.card.get("share_no_result")
        if no_result and recipe.rkv.method == "steps":
            log.warning("%.1f %% of the examples have no step result: their KV term is empty", 100 * no_result)

    def close(self, trainer: KavaTrainer, finished: bool, seconds: float) -> None:
        """Completes meta.json and logs how the run ended."""
        state, metric = trainer.state, trainer.validation.decides
        facts = {"finished": finished, "steps": state.global_step, "seconds": round(seconds, 1)}
        folder.update(self.folder, **facts, **{f"best_{metric}": state.best_metric})
        if finished:
            best = "none (nothing to validate on)" if state.best_metric is None else f"{state.best_metric:.4f}"
            place = self.folder / BEST
            log.info("done: %d updates, best validation %s %s, student in %s", state.global_step, metric, best, place)
        else:
            log.info("stopped at update %d; continue with --resume auto", state.global_step)
        if trainer.recipe.explicit.enabled:
            args, names = trainer.args, ("per_device_train_batch_size", "gradient_accumulation_steps")
            batch_size, steps = (getattr(args, name) for name in names)  # what this run's processes really had
            recipe = trainer.recipe.changed("training", batch_size=batch_size, gradient_accumulation_steps=steps)
            guide_files.close(self.folder, recipe, state, finished, args.world_size)


@contextmanager
def _open_log(path: Path, quiet: bool) -> Iterator[None]:
    """Sends kava's log lines to train.log and, unless quiet, to the console while the run lasts; rank 0 only."""
    root, main = logging.getLogger("kava"), is_main_process()
    before = (root.handlers, root.level, root.propagate)
    stream = open_append(path if main else os.devnull)
    file = logging.StreamHandler(stream)
    file.setFormatter(VisibleFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    console = LogLines()
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    root.handlers, root.propagate = [file, console] if main else [file], False
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, level, root.propagate = before
        root.setLevel(level)
        stream.close()
