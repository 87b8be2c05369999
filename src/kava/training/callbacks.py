"""Trainer callbacks: when to save, validate and stop; the console, train.log and log.jsonl."""

import json
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kava.config.text import read_text
from kava.config.typed_file import read_dicts
from kava.files import open_append, write_text
from kava.progress import Meter, clock_time, progress
from kava.run_files import SteppedLine
from kava.training import folder
from kava.training.interrupt import Interrupt
from kava.training.processes import main_process_decides
from kava.training.sharding import whole_tensor
from kava.training.trainer import KavaTrainer

log = logging.getLogger("kava.train")
CONSOLE_TERMS = ("loss", "ce_student", "ce_teacher", "codi", "kv", "kv_cosine", "attention", "cka", "guard", "entropy")
# of a validation; log.jsonl has all
CONSOLE_MEASURES = (
    *("accuracy", "no_answer", "truncated", "avg_forward_passes"),
    *("ce", "kv", "kv_unexplained", "cossim", "target_variation", "entropy"),
)


class Schedule(TrainerCallback):
    """Saves every `save_steps` and every epoch, validates every `eval_steps` and every epoch.

    After a signal it saves at once and does not validate; the resumed run begins with the validation that is due.
    """

    def __init__(self, trainer: KavaTrainer, interrupt: Interrupt):
        self.trainer, self.interrupt = trainer, interrupt

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.share_stream()
        every = self.trainer.recipe.logging.eval_steps
        self.trainer.epoch = max(0, math.ceil((state.epoch or 0) - 1e-6) - 1)  # that of the last update
        best = Path(args.output_dir) / folder.BEST
        if state.best_metric is not None and not main_process_decides(best.is_dir):
            log.warning("%s is not there: the best student is chosen from the validations to come", best)
            state.best_metric = None
        if state.global_step and not _validated(state) and (state.global_step % every == 0 or ends_epoch(state.epoch)):
            self.trainer.evaluate()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.epoch = int((state.epoch or 0) + 1e-6)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        logs = self.trainer.recipe.logging
        self.trainer.at_epoch_end = False
        if self.interrupt.look():
            control.should_save = control.should_training_stop = True
        elif not ends_epoch(state.epoch) and not control.should_training_stop:  # else the epoch's end does it
            control.should_save = state.global_step % logs.save_steps == 0
            control.should_evaluate = state.global_step % logs.eval_steps == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.at_epoch_end = ends_epoch(state.epoch)
        control.should_save = self.interrupt.signal is None or ends_epoch(state.epoch)
        control.should_evaluate = self.interrupt.signal is None and not _validated(state)


def _validated(state: Any) -> bool:
    """Whether the current update's validation is in the log history."""
    return any(line["step"] == state.global_step for line in state.log_history if validates(line))


def validates(logs: dict[str, Any]) -> bool:
    """Whether a line of the log holds validation metrics."""
    return any(name.startswith("eval_") for name in logs)


def ends_epoch(epoch: float) -> bool:
    """Whether an epoch ends at this point, counted in epochs."""
    return math.isclose(epoch, round(epoch), abs_tol=1e-9)


class GradientNorms(TrainerCallback):
    """Logs the gradient norm of each group of weights, after clipping."""

    def __init__(self, trainer: KavaTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (state.global_step + 1) % args.logging_steps:
            return
        groups: dict[str, list[torch.Tensor]] = {}
        for name, weight in self.trainer.objective.trained().items():
            if weight.grad is not None:
                groups.setdefault(group_of(name), []).append(whole_tensor(weight.grad.norm()))
        for group, norms in groups.items():
            self.trainer.health[f"grad_{group}"] = float(torch.stack(norms).norm())


def group_of(name: str) -> str:
    """router, projector (also the teachers' adapters), projection (of latents), embedding or backbone."""
    if "mixture.fusion." in name:
        return "router"
    if not name.startswith("model."):
        return "projector"
    if name.startswith("model.project."):
        return "projection"
    return "embedding" if any(part in name for part in ("embed_tokens", "wte", "token_adapter")) else "backbone"


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log file."""
    with open_append(path) as file:
        file.write(line + "\n")


def append_json(path: Path, step: int, facts: dict[str, Any]) -> None:
    """Adds a line with this step to a JSON-lines file."""
    append_line(path, json.dumps({"step": step, **facts}))


def cut_after(path: Path, step: int) -> None:
    """Removes the lines of later steps, and a torn one, from a JSON-lines file: a run resumes from this step."""
    if not path.exists():
        return
    text, hint = read_text(path, str(path), ""), "delete that line"
    lines = zip(
        text.split("\n"), read_dicts(path, SteppedLine, hint), strict=False
    )  # what follows the last line is torn
    kept = "".join(f"{line}\n" for line, row in lines if row["step"] <= step)
    if kept != text:
        write_text(path, kept)


class Journal(TrainerCallback):
    """Writes log.jsonl."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)
            folder.update(self.path.parent, total_steps=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            append_json(self.path, state.global_step, logs or {})


class Console(TrainerCallback):
    """A meter of updates with the loss, and a log line for every log."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.meter: Meter | None = None
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step
        self.meter = self.open.enter_context(progress("train", state.max_steps, "updates", done=self.first))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.meter is not None
        self.meter.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = logs or {}
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        terms = {name: logs[name] for name in CONSOLE_TERMS if name in logs}
        if self.meter is not None and "loss" in logs:
            self.meter.note = f"loss {logs['loss']:.3f}"
        parts = [f"{name} {value:.4f}" for name, value in terms.items()]
        measured = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        main = {name: value for name, value in measured.items() if name.removesuffix("_kept") in CONSOLE_MEASURES}
        parts += [f"{name} {value:.4f}" for name, value in (main or measured).items()]
        if "learning_rate" in logs:
            done = state.global_step - self.first
            left = (state.max_steps - state.global_step) * (time.perf_counter() - self.began) / max(done, 1)
            parts += [f"lr {logs['learning_rate']:.2e}", f"{clock_time(left)} left"]
        kind = "valid" if validates(logs) else "step"
        log.info("%s %d/%d  %s", kind, state.global_step, state.max_steps, "  ".join(parts))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.open.close()
