"""One training run, from a recipe to best_checkpoint/."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kava.backbone.hush import hush
from kava.backbone.load import build_model
from kava.backbone.model import LatentModel
from kava.config import BUILTIN_DATASETS, Recipe
from kava.data.cards import card
from kava.data.collate import Collator
from kava.data.encode import Encoder, encode_split
from kava.data.example import Example
from kava.data.load import ExampleStream, load_examples
from kava.errors import ConfigError, DataError
from kava.evaluate.score import score
from kava.files import write_json
from kava.infer.student import Student, pick_device
from kava.objectives.latent import LatentObjective
from kava.train import checkpoint, folder
from kava.train.arguments import training_arguments
from kava.train.callbacks import Console, GradientNorms, Journal, Schedule
from kava.train.interrupt import Interrupt
from kava.train.trainer import BEST, KavaTrainer

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
    data = _load_data(recipe, tokenizer)
    _check_positions(model, data.train)
    if recipe.rkv.full_slots:
        recipe = _with_slots(recipe, int(data.train.lengths("cot").max()))
        model.latent = recipe.latent
    objective = LatentObjective.from_recipe(model, recipe)
    _describe(run, recipe, data, model)

    with Interrupt() as interrupt:
        trainer = _trainer(run, recipe, objective, tokenizer, data, interrupt, quiet)
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        if interrupt.signal is None and not (run / BEST).exists():  # nothing to validate on
            trainer.save_best(validation=None)
        getattr(trainer, "end", lambda: None)()
        _close(run, trainer, interrupt, time.perf_counter() - began)
    return folder.Outcome(run, trainer.state.global_step, trainer.state.best_metric, interrupt.exit_code)


@dataclass(frozen=True)
class _Data:
    train: Any
    validation: Sequence[Example]
    card: dict[str, Any]


def _load_data(recipe: Recipe, tokenizer: Any) -> _Data:
    dataset = recipe.dataset
    encoder = Encoder(tokenizer, dataset.drop_last_step, dataset.cot_type)
    examples = load_examples(dataset, "train")
    validation = _validation(recipe)
    if dataset.streaming:
        return _Data(_stream(recipe, examples, encoder), validation, {"streaming": True})
    assert not isinstance(examples, ExampleStream)
    split = encode_split(examples, encoder, dataset.max_length)
    facts = card(split.encoded, examples, recipe.latent.num_tokens) | {"skipped": split.skipped}
    _check_results(recipe, facts["share_no_result"] not in (None, 1))
    return _Data(split.encoded, validation, facts)


def _validation(recipe: Recipe) -> list[Example]:
    """The validation examples, or a seeded choice of `evaluation.validation_size` of them."""
    dataset, size = recipe.dataset, recipe.evaluation.validation_size
    held_out = dataset.generator.val_size if dataset.name in BUILTIN_DATASETS else dataset.val_size
    found = list(load_examples(dataset, "validation")) if held_out else []
    if size is None or size >= len(found):
        return found
    chosen = random.Random(dataset.seed).sample(range(len(found)), size)
    return [found[i] for i in sorted(chosen)]


def _stream(recipe: Recipe, examples: Any, encoder: Encoder) -> Any:
    from kava.data.stream import stream_dataset

    if recipe.rkv.full_slots:
        raise ConfigError(
            "rkv.full_slots needs the longest chain of thought, which a stream does not tell",
            "set dataset.streaming=false, or latent.num_tokens by hand",
        )
    if recipe.training.max_steps is None:
        raise ConfigError("a stream has no known length", "set training.max_steps, or dataset.streaming=false")
    _check_results(recipe, any(any(encoder(example).result) for example in islice(examples, 200)))
    return stream_dataset(examples, encoder, recipe.dataset.max_length)


def _check_results(recipe: Recipe, some: bool) -> None:
    if recipe.rkv.method == "steps" and recipe.loss.alpha2_kv > 0 and not some:
        raise DataError(
            f"rkv.method is steps, but no example of {recipe.dataset.name!r} has a step result to anchor on",
            "use a data set with equation steps (a = b) or another rkv.method, such as rkv",
        )


def _check_positions(model: LatentModel, train: Any) -> None:
    """Learned positions have an end; a sequence beyond it would stop the run in the middle."""
    most = model.max_positions
    if most is None or not hasattr(train, "lengths"):
        return
    answer = train.lengths("answer") + len(train.cue) + 1
    longest = train.lengths("question") + answer + train.lengths("cot").clip(min=model.latent.num_tokens + 2)
    if longest.max() > most:
        raise DataError(
            f"{(longest > most).sum()} training examples need up to {longest.max()} positions, the model has {most}",
            "skip them with dataset.max_length, or use a model with a longer context",
        )


def _with_slots(recipe: Recipe, longest: int) -> Recipe:
    """`rkv.full_slots`: as many latents as the longest chain of thought has tokens."""
    return recipe.model_copy(update={"latent": recipe.latent.model_copy(update={"num_tokens": longest})})


def _describe(run: Path, recipe: Recipe, data: _Data, model: LatentModel) -> None:
    trained = model.trained()
    facts = {
        "data": data.card,
        "device": torch.cuda.get_device_name(0) if model.device.type == "cuda" else model.device.type,
        "threads": torch.get_num_threads(),
        "trained_names": len(trained),
        "trained_parameters": sum(weight.numel() for weight in trained.values()),
        "all_parameters": sum(weight.numel() for weight in model.parameters()),
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
    objective: LatentObjective,
    tokenizer: Any,
    data: _Data,
    interrupt: Interrupt,
    quiet: bool,
) -> KavaTrainer:
    student = Student(objective.model, tokenizer, recipe)
    mode = "latent" if recipe.loss.student_ce > 0 else "cot"

    def validate() -> dict[str, float] | None:
        if not data.validation:
            return None
        return score(student, data.validation, mode, stop=lambda: interrupt.signal is not None)

    trainer = KavaTrainer(
        objective,
        recipe,
        tokenizer,
        validate,
        interrupt,
        args=training_arguments(recipe, run),
        train_dataset=data.train,
        data_collator=Collator(tokenizer.pad_token_id),
    )
    for callback in (
        Schedule(trainer, interrupt),
        GradientNorms(trainer),
        Journal(run / "log.jsonl"),
        Console(quiet),
    ):
        trainer.add_callback(callback)
    return trainer


def _close(run: Path, trainer: KavaTrainer, interrupt: Interrupt, seconds: float) -> None:
    state = trainer.state
    finished = interrupt.signal is None
    folder.update(
        run, finished=finished, steps=state.global_step, best_accuracy=state.best_metric, seconds=round(seconds, 1)
    )
    if finished:
        best = "none (nothing to validate on)" if state.best_metric is None else f"{state.best_metric:.4f}"
        log.info("done: %d updates, best validation accuracy %s, student in %s", state.global_step, best, run / BEST)
    else:
        log.info("stopped at update %d; continue with --resume auto", state.global_step)


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
