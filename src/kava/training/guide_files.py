"""The files and console lines that the guides describe for a run of the explicit line.

training_log.txt        a line per log and per epoch, see STEP_LINE and EPOCH_LINE; log.jsonl holds more
TRAINING_COMPLETED.txt  settings and last losses, once the run is finished
emergency_checkpoint/   after Ctrl-C: a complete checkpoint, with the guides' names for its files as well
"""

import logging
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kava.backbone.card import WEIGHTS
from kava.config import Recipe
from kava.files import new_folder, remove, write_json, write_text
from kava.training import checkpoint
from kava.training.aux_state import FILE as PROJECTOR
from kava.training.callbacks import Console, append_line, ends_epoch

log = logging.getLogger("kava.train")
LOG, COMPLETED, EMERGENCY = "training_log.txt", "TRAINING_COMPLETED.txt", "emergency_checkpoint"
_NUMBER = r"[-+.\deE]+"
_TERMS = rf"CE (?P<ce>{_NUMBER}) \| KV (?P<kv>{_NUMBER}|off) \| CODI (?P<codi>{_NUMBER}|off)"
STEP_LINE = re.compile(
    rf"step (?P<step>\d+)/(?P<steps>\d+) \| loss (?P<loss>{_NUMBER}) \| {_TERMS}"
    rf"(?: \| CKA (?P<cka>{_NUMBER}))? \| lr (?P<lr>{_NUMBER})"
)
EPOCH_LINE = re.compile(rf"epoch (?P<epoch>\d+)/(?P<epochs>\d+) \| average loss (?P<loss>{_NUMBER}) \| {_TERMS}")
STATUS = ((0.90, "Excellent"), (0.70, "Good"), (0.50, "Learning"))
STATES = {"student_state_dict": WEIGHTS, "projector_state_dict": PROJECTOR, "optimizer_state_dict": "optimizer.pt"}
Lines = Sequence[Mapping[str, Any]]  # the trainer's log_history


# -- training_log.txt --------------------------------------------------------------------------------------------------


class TrainingLog(TrainerCallback):
    """Writes training_log.txt, at least one line per epoch; a resumed run first removes the lines of later updates.

        step 50/1000 | loss 0.2139 | CE 0.1801 | KV 0.0338 | CODI off | lr 4.5e-05
        epoch 1/3 | average loss 0.2139 | CE 0.1801 | KV 0.0338 | CODI off

    Steps are optimiser updates. A line holds means since the previous line; an epoch's line the mean loss over its
    updates and the terms of its last line. A term whose weight is 0 is "off".
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        def is_kept(line: str) -> bool:
            step = STEP_LINE.fullmatch(line.strip())
            return line.endswith("\n") and (step is None or int(step["step"]) <= state.global_step)

        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.path, "".join(takewhile(is_kept, lines)))  # everything after the first later line is later

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or _ends(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        append_line(self.path, step_line(logs, state.global_step, state.max_steps))
        if _ends(state):
            epoch = math.ceil(state.epoch - 1e-9)
            known = state.num_train_epochs < 10**6  # a stream has no number of epochs
            epochs = int(state.num_train_epochs) if known else epoch
            append_line(self.path, epoch_line(self.path.read_text(encoding="utf-8"), logs, epoch, epochs))


def _ends(state: Any) -> bool:
    """Whether this update is the last of an epoch or of the run."""
    return ends_epoch(state.epoch) or state.global_step >= state.max_steps


def step_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """A line of training_log.txt for one log."""
    cka = f" | CKA {logs['cka']:.6g}" if "cka" in logs else ""
    return f"step {step}/{steps} | loss {logs['loss']:.6g} | {_terms(logs)}{cka} | lr {logs['learning_rate']:.6g}"


def epoch_line(text: str, logs: Mapping[str, Any], epoch: int, epochs: int) -> str:
    """The line at the end of an epoch; its mean loss is computed from the step lines in `text` since the last epoch."""
    before, total, count = 0, 0.0, 0
    for line in text.splitlines():
        step = STEP_LINE.fullmatch(line)
        if step is None:
            total, count = 0.0, 0
            continue
        updates, before = int(step["step"]) - before, int(step["step"])
        total, count = total + float(step["loss"]) * updates, count + updates
    return f"epoch {epoch}/{epochs} | average loss {total / count:.6g} | {_terms(logs)}"


def _terms(logs: Mapping[str, Any]) -> str:
    terms = {"CE": "ce_student", "KV": "kv", "CODI": "codi"}
    return " | ".join(f"{word} {logs[name]:.6g}" if name in logs else f"{word} off" for word, name in terms.items())


# -- the console -------------------------------------------------------------------------------------------------------


def status_word(cossim: float) -> str:
    """The guide's word for a held-out cosine similarity; Excellent begins at 0.90."""
    return next((word for least, word in STATUS if cossim >= least), "Adapting")


def live(history: Lines) -> str:
    """What stands behind the count of updates: Loss of the last log, CosSim and Status of the last validation."""
    words = []
    if (loss := _last(history, "loss")) is not None:
        words.append(f"Loss {loss:.4f}")
    if (cossim := _last(history, "eval_cossim")) is not None:
        words += [f"CosSim {cossim:.4f}", f"Status {status_word(cossim)}"]
    return ", ".join(words)


class GuideConsole(Console):
    """The console with Loss, CosSim and Status behind the count, and a line for every validation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        super().on_log(args, state, control, logs=logs)
        if not state.is_world_process_zero:
            return
        if self.meter is not None:
            self.meter.note = live(state.log_history)
        if (cossim := (logs or {}).get("eval_cossim")) is not None:
            centred, mean = logs.get("eval_cossim_centred", math.nan), logs.get("eval_cossim_mean_predictor")
            constant = "" if mean is None else f"; one vector for everything would have {mean:.4f}"
            status = status_word(cossim)
            log.info("held-out CosSim %.4f (centred %.4f%s), Status %s", cossim, centred, constant, status)


def best_cossim(history: Lines) -> float | None:
    """The highest of all validations; None before the first."""
    return max((line["eval_cossim"] for line in history if "eval_cossim" in line), default=None)


def summary(steps: int, best: float | None, run: Path, done: bool) -> str:
    """The last lines of a run on the console."""
    last = f"Student for transformers: {run / 'final_model'}" if done else f"Emergency checkpoint: {run / EMERGENCY}"
    lines = (
        f"Total steps: {steps} (optimiser updates)",
        f"Best CosSim: {'not measured' if best is None else f'{best:.4f}'}",
        f"Output directory: {run}",
        f"Checkpoints: {run}{os.sep}checkpoint-*",
        last,
    )
    return "\n   ".join(["[RESULT] Final Results:" if done else "[RESULT] Stopped:", *lines])


def _last(history: Lines, name: str) -> Any:
    return next((line[name] for line in reversed(history) if name in line), None)


# -- at the end --------------------------------------------------------------------------------------------------------


def write_completed(run: Path, recipe: Recipe, steps: int, history: Lines, processes: int = 1) -> None:
    """Writes TRAINING_COMPLETED.txt, `name: value` per line; "off" for what the run does not have."""
    loss, training, explicit = recipe.loss, recipe.training, recipe.explicit
    kv = loss.alpha2_kv > 0
    last = next((line for line in reversed(history) if "loss" in line), {})
    compared = kv or loss.alpha1_codi > 0 or explicit.cka_weight > 0
    facts: dict[str, Any] = {
        "model": recipe.model.name,
        "teacher": (recipe.teacher.name or f"{recipe.model.name} (frozen copy)") if compared else "off",
        "teacher_quantization": recipe.teacher.quantization if compared else "off",
        "dataset": recipe.dataset.name,
        "subset_size": recipe.dataset.subset_size or "all",
        "epochs": f"{_last(history, 'epoch') or 0:.4g}",
        "steps": f"{steps} optimiser updates",
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "processes": processes,
        "effective_batch_size": processes * training.batch_size * training.gradient_accumulation_steps,
        "learning_rate": f"{training.learning_rate:g}",
        "alignment_mode": explicit.form if kv else "off",
        "kv_method": recipe.rkv.method if kv else "off",
        "target_len": explicit.target_len if kv and recipe.rkv.method != "full" else "off",
        "kv_loss": loss.kv_loss_type if kv else "off",
        "ce_weight": f"{loss.student_ce:g}",
        "kv_weight": f"{loss.alpha2_kv:g}",
        "codi_weight": f"{loss.alpha1_codi:g}",
        "cka_weight": f"{explicit.cka_weight:g}",
        "projector": recipe.projector.direction if kv else "off",
        "shuffle_kv": "false" if not kv or recipe.rkv.shuffle == "none" else f"true ({recipe.rkv.shuffle})",
        "seed": recipe.system.seed,
        "output_dir": run,
    }
    terms = {"loss": "loss", "ce": "ce_student", "kv": "kv", "codi": "codi", "cka": "cka"}
    facts |= {f"final_{word}": f"{last[name]:.6g}" if name in last else "off" for word, name in terms.items()}
    best = best_cossim(history)
    facts |= {"best_cossim": "off"} if best is None else {"best_cossim": f"{best:.6g}", "status": status_word(best)}
    write_text(run / COMPLETED, "".join(f"{name}: {value}\n" for name, value in facts.items()))


def write_emergency(folder: Path, whole: Path, step: int, best: float | None) -> None:
    """Writes the checkpoint `whole` again with the guide's file names added; --resume accepts this folder.

    checkpoint.json holds step, best_cossim and the file of each state dict (null: this run has none). Files are hard
    links, or copies where the file system has no links.
    """
    with new_folder(folder) as partial:
        shutil.copytree(whole, partial, copy_function=_link, dirs_exist_ok=True)
        files: dict[str, str | None] = dict.fromkeys(STATES)
        for name, file in STATES.items():
            if (whole / file).is_file():
                files[name] = name + Path(file).suffix
                _link(whole / file, partial / f"{files[name]}")
        write_json(partial / "checkpoint.json", {"step": step, "best_cossim": best, **files, "copy_of": whole.name})


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def close(run: Path, recipe: Recipe, state: Any, done: bool, processes: int = 1) -> None:
    """Writes and logs the end of a run, or (not `done`) the emergency checkpoint after Ctrl-C."""
    best = best_cossim(state.log_history)
    if done:
        write_completed(run, recipe, state.global_step, state.log_history, processes)
        remove(run / EMERGENCY)  # left by an earlier stop
    else:
        for newest in checkpoint.find(run)[0][-1:]:
            write_emergency(run / EMERGENCY, newest.path, newest.step, best)
    for line in summary(state.global_step, best, run, done).splitlines():
        log.info(line)
