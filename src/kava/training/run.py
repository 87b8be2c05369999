"""One training run, from a recipe to best_checkpoint/."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from kava.backbone.load import build_model
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe
from kava.files import write_json
from kava.infer.student import pick_device
from kava.training import checkpoint, folder, guide_files
from kava.training.arguments import training_arguments
from kava.training.callbacks import Console, GradientNorms, Journal, Schedule
from kava.training.data import Data, check_positions, load_data
from kava.training.interrupt import Interrupt
from kava.training.method_line import Line, explicit_line, latent_line
from kava.training.processes import is_main_process, lay_out, main_process_decides
from kava.training.trainer import BEST, KavaTrainer

log = logging.getLogger("kava.train")


def train(recipe: Recipe, output: str | Path, resume: str | None = None, quiet: bool = False) -> folder.Outcome:
    """Trains, saves and validates. `resume` is None, "auto" or a checkpoint folder."""
    run = Path(output)
    silence_libraries()
    args = training_arguments(recipe, run)  # under torchrun the processes meet here
    with ExitStack() as held:

        def claim() -> tuple[Path | None, list[str]]:
            held.enter_context(folder.claimed(run, recipe, resume))
            return checkpoint.choose(run, resume) if resume else (None, [])

        start, notes = main_process_decides(claim)
        held.enter_context(_open_log(run / "train.log", quiet))
        for note in notes:
            log.warning(note)
        if start is not None and folder.finished(run):
            log.info("nothing to do: the run in %s is finished", run)
            return folder.outcome(run)
        if resume:
            log.info(f"continuing from {start}" if start else "no checkpoint yet: starting from the beginning")
        _lay_out(args, recipe, start)
        return _run(run, recipe, start, quiet, args)


def _lay_out(args: Any, recipe: Recipe, start: Path | None) -> None:
    """A run that goes on with another number of processes has as many examples in an update as before."""
    layout = lay_out(recipe, args.world_size, None if start is None else checkpoint.examples_of(start))
    if layout != (args.per_device_train_batch_size, args.gradient_accumulation_steps):
        log.info(
            "going on with %d processes of %d examples x %d micro-batches, so that an update has %d examples as before",
            args.world_size,
            *layout,
            layout.at_once(args.world_size),
        )
    args.per_device_train_batch_size, args.gradient_accumulation_steps = layout


def _run(run: Path, recipe: Recipe, start: Path | None, quiet: bool, args: Any) -> folder.Outcome:
    from transformers import set_seed

    if pick_device(recipe.system.device).type == "cpu":
        torch.set_flush_denormal(True)  # subnormal numbers are worth nothing here and cost a fifth of a step
    set_seed(recipe.system.seed)
    model, tokenizer = build_model(recipe)
    data = load_data(recipe, tokenizer)
    check_positions(model, data.train, model.latent.num_tokens)
    if recipe.rkv.full_slots:
        recipe = _with_slots(recipe, int(data.train.lengths("cot").max()))
        model.latent = recipe.latent
    interrupt = Interrupt()
    line = (explicit_line if recipe.explicit.enabled else latent_line)(
        recipe, model, tokenizer, data, args.device, interrupt.look
    )

    with interrupt:
        trainer = _trainer(run, recipe, line, tokenizer, data, interrupt, args, quiet)
        main_process_decides(lambda: _describe(run, recipe, data, trainer))
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        seconds = time.perf_counter() - began
        if interrupt.signal is None and not main_process_decides((run / BEST).exists):  # nothing to validate on
            trainer.save_best(validation=None)
        if interrupt.signal is None and line.finish is not None:
            with trainer.whole():
                if is_main_process():
                    line.finish(run)
        if is_main_process():
            _close(run, trainer, interrupt, seconds)
        getattr(trainer, "end", lambda: None)()
    decides = trainer.validation.decides
    return folder.Outcome(run, trainer.state.global_step, decides, trainer.state.best_metric, interrupt.exit_code)


def _with_slots(recipe: Recipe, longest: int) -> Recipe:
    """`rkv.full_slots`: as many latents as the longest chain of thought has tokens."""
    return recipe.model_copy(update={"latent": recipe.latent.model_copy(update={"num_tokens": longest})})


def _describe(run: Path, recipe: Recipe, data: Data, trainer: KavaTrainer) -> None:
    objective, processes = trainer.objective, trainer.args.world_size
    trained = objective.trained()
    facts = {
        "data": data.card,
        "device": torch.cuda.get_device_name(0)
        if objective.model.device.type == "cuda"
        else objective.model.device.type,
        "threads": torch.get_num_threads(),
        "trained_names": len(trained),
        "trained_parameters": sum(weight.numel() for weight in trained.values()),
        "all_parameters": sum(weight.numel() for weight in objective.parameters()),
        "processes": processes,
        "sharding": recipe.system.sharding if processes > 1 else "none",
        "effective_batch_size": trainer.effective_batch_size,
    }
    folder.describe(run, recipe, facts)
    write_json(run / "data_card.json", data.card)
    log.info("%s: %s", recipe.about.name or "run", json.dumps(facts["data"]))
    log.info("training %(trained_parameters)s of %(all_parameters)s parameters", facts)
    log.info(
        "processes: %d (sharding %s); examples in an update: %d = %d processes x %d x %d micro-batches",
        processes,
        facts["sharding"],
        facts["effective_batch_size"],
        processes,
        trainer.args.per_device_train_batch_size,
        trainer.args.gradient_accumulation_steps,
    )
    if recipe.loss.std_scope == "batch":
        log.warning("loss.std_scope is batch, as in the parents' code: the loss depends on how batches are split")
    without = data.card.get("share_no_result")
    if without and recipe.rkv.method == "steps":
        log.warning("%.1f %% of the examples have no step result: their KV term is empty", 100 * without)


def _trainer(
    run: Path,
    recipe: Recipe,
    line: Line,
    tokenizer: Any,
    data: Data,
    interrupt: Interrupt,
    args: Any,
    quiet: bool,
) -> KavaTrainer:
    trainer = KavaTrainer(
        line.objective,
        recipe,
        tokenizer,
        line.validation,
        interrupt,
        args=args,
        train_dataset=data.train,
        data_collator=line.collate,
    )
    callbacks: list[Any] = [Schedule(trainer, interrupt), GradientNorms(trainer), Journal(run / "log.jsonl")]
    if recipe.explicit.enabled:
        callbacks += [guide_files.TrainingLog(run / guide_files.LOG), guide_files.GuideConsole(quiet)]
    else:
        callbacks.append(Console(quiet))
    for callback in (*callbacks, *line.callbacks):
        trainer.add_callback(callback)
    return trainer


def _close(run: Path, trainer: KavaTrainer, interrupt: Interrupt, seconds: float) -> None:
    state = trainer.state
    finished = interrupt.signal is None
    folder.update(
        run,
        finished=finished,
        steps=state.global_step,
        seconds=round(seconds, 1),
        **{f"best_{trainer.validation.decides}": state.best_metric},
    )
    if finished:
        best = "none (nothing to validate on)" if state.best_metric is None else f"{state.best_metric:.4f}"
        what = trainer.validation.decides
        log.info("done: %d updates, best validation %s %s, student in %s", state.global_step, what, best, run / BEST)
    else:
        log.info("stopped at update %d; continue with --resume auto", state.global_step)
    if trainer.recipe.explicit.enabled:
        guide_files.close(run, _as_laid_out(trainer), state, finished, trainer.args.world_size)


def _as_laid_out(trainer: KavaTrainer) -> Recipe:
    """The recipe with the batches that this run's processes really had."""
    args = trainer.args
    real = {
        "batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }
    return trainer.recipe.model_copy(update={"training": trainer.recipe.training.model_copy(update=real)})


@contextmanager
def _open_log(path: Path, quiet: bool) -> Iterator[None]:
    """kava's own lines go to train.log and, unless quiet, to the console, for as long as the run lasts.

    Of several processes the first one speaks.
    """
    root = logging.getLogger("kava")
    before = (root.handlers, root.level, root.propagate)
    if not is_main_process():
        path = Path(os.devnull)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    root.handlers, root.propagate = [file, console] if is_main_process() else [file], False
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, level, root.propagate = before
        root.setLevel(level)
        file.close()
