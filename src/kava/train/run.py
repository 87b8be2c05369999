"""One training run, from a recipe to best_checkpoint/."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kava.backbone.hush import hush
from kava.backbone.load import build_model
from kava.config import Recipe
from kava.files import write_json
from kava.infer.student import pick_device
from kava.train import checkpoint, folder, guide_files
from kava.train.arguments import training_arguments
from kava.train.callbacks import Console, GradientNorms, Journal, Schedule
from kava.train.data import Data, check_positions, load_data
from kava.train.interrupt import Interrupt
from kava.train.lines import Line, explicit_line, latent_line
from kava.train.trainer import BEST, KavaTrainer, Objective

log = logging.getLogger("kava.train")


def train(recipe: Recipe, output: str | Path, resume: str | None = None, quiet: bool = False) -> folder.Outcome:
    """Trains, saves and validates. `resume` is None, "auto" or a checkpoint folder."""
    run = Path(output)
    with folder.claimed(run, recipe, resume), _open_log(run / "train.log", quiet):
        hush()
        start, notes = checkpoint.choose(run, resume) if resume else (None, [])
        for note in notes:
            log.warning(note)
        if start is not None and folder.finished(run):
            log.info("nothing to do: the run in %s is finished", run)
            return folder.outcome(run)
        if resume:
            log.info(f"continuing from {start}" if start else "no checkpoint yet: starting from the beginning")
        return _run(run, recipe, start, quiet)


def _run(run: Path, recipe: Recipe, start: Path | None, quiet: bool) -> folder.Outcome:
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
    args = training_arguments(recipe, run)
    line = (explicit_line if recipe.explicit.enabled else latent_line)(
        recipe, model, tokenizer, data, args.device, lambda: interrupt.signal is not None
    )
    _describe(run, recipe, data, line.objective)

    with interrupt:
        trainer = _trainer(run, recipe, line, tokenizer, data, interrupt, args, quiet)
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        if interrupt.signal is None and not (run / BEST).exists():  # nothing to validate on
            trainer.save_best(validation=None)
        getattr(trainer, "end", lambda: None)()
        if interrupt.signal is None and line.finish is not None:
            line.finish(run)
        _close(run, trainer, interrupt, time.perf_counter() - began)
    decides = trainer.validation.decides
    return folder.Outcome(run, trainer.state.global_step, decides, trainer.state.best_metric, interrupt.exit_code)


def _with_slots(recipe: Recipe, longest: int) -> Recipe:
    """`rkv.full_slots`: as many latents as the longest chain of thought has tokens."""
    return recipe.model_copy(update={"latent": recipe.latent.model_copy(update={"num_tokens": longest})})


def _describe(run: Path, recipe: Recipe, data: Data, objective: Objective) -> None:
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
        "effective_batch_size": recipe.training.batch_size * recipe.training.gradient_accumulation_steps,
    }
    folder.describe(run, recipe, facts)
    write_json(run / "data_card.json", data.card)
    log.info("%s: %s", recipe.about.name or "run", json.dumps(facts["data"]))
    log.info("training %(trained_parameters)s of %(all_parameters)s parameters", facts)
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
    if trainer.recipe.explicit.enabled and state.is_world_process_zero:
        guide_files.close(run, trainer.recipe, state, finished, trainer.args.world_size)


@contextmanager
def _open_log(path: Path, quiet: bool) -> Iterator[None]:
    """kava's own lines go to train.log and, unless quiet, to the console, for as long as the run lasts."""
    root = logging.getLogger("kava")
    before = (root.handlers, root.level, root.propagate)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    root.handlers, root.propagate = [file, console], False
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, level, root.propagate = before
        root.setLevel(level)
        file.close()
