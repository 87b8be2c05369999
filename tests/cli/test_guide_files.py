"""training_log.txt, TRAINING_COMPLETED.txt, emergency_checkpoint/, the live line and the probed batch."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kava.backbone.card import write_card
from kava.config import load_recipe, save_recipe
from kava.errors import RunError
from kava.progress import Meter
from kava.training import probe as probe_module
from kava.training.guide_files import (
    COMPLETED,
    EMERGENCY,
    EPOCH_LINE,
    STEP_LINE,
    GuideConsole,
    TrainingLog,
    best_cossim,
    close,
    live,
    status_word,
    summary,
    write_completed,
    write_emergency,
)
from kava.training.probe import largest_batch, measured_batch

EMBEDDED = ("dataset.generator.train_size=64", "dataset.generator.val_size=8", "system.device=cpu")


def state_at(step: int, steps: int = 10, per_epoch: int = 5, history: list[dict[str, Any]] | None = None) -> Any:
    return SimpleNamespace(
        global_step=step,
        max_steps=steps,
        epoch=step / per_epoch,
        num_train_epochs=-(-steps // per_epoch),
        is_world_process_zero=True,
        log_history=history or [],
    )


def logs_at(step: int, **terms: float) -> dict[str, float]:
    return {"loss": float(step), "ce_student": step / 4, "learning_rate": 5e-5, **terms}


def write_log(path: Path, first: int, last: int, every: int = 2, steps: int = 10, **terms: float) -> None:
    """What the trainer does from update `first` to `last`: a log every `every` updates, and at an epoch's end."""
    writer = TrainingLog(path)
    writer.on_train_begin(None, state_at(first, steps), None)
    for step in range(first + 1, last + 1):
        state, control = state_at(step, steps), SimpleNamespace(should_log=step % every == 0)
        if step % 5 == 0 or step == steps:
            writer.on_epoch_end(None, state, control)
        if control.should_log:
            writer.on_log(None, state, control, logs=logs_at(step, **terms))


# ---- training_log.txt


def test_the_log_can_be_parsed(tmp_path: Path) -> None:
    path = tmp_path / "training_log.txt"
    write_log(path, 0, 10, kv=0.0338, codi=1.5e-7)
    lines = path.read_text(encoding="utf-8").splitlines()
    steps = [match.groupdict() for line in lines if (match := STEP_LINE.fullmatch(line))]
    epochs = [match.groupdict() for line in lines if (match := EPOCH_LINE.fullmatch(line))]
    assert len(steps) + len(epochs) == len(lines)
    assert [int(step["step"]) for step in steps] == [2, 4, 5, 6, 8, 10]
    assert {int(step["steps"]) for step in steps} == {10}
    assert [float(steps[0][name]) for name in ("loss", "ce", "kv", "codi", "lr")] == [2.0, 0.5, 0.0338, 1.5e-7, 5e-5]
    assert [(one["epoch"], one["epochs"]) for one in epochs] == [("1", "2"), ("2", "2")]
    # the mean over updates, not over lines: 2, 2, 4, 4, 5 and 6, 8, 8, 10, 10
    assert [float(one["loss"]) for one in epochs] == pytest.approx([17 / 5, 42 / 5])
    assert [float(one["ce"]) for one in epochs] == [1.25, 2.5]
    assert lines[0] == "step 2/10 | loss 2 | CE 0.5 | KV 0.0338 | CODI 1.5e-07 | lr 5e-05"
    assert lines[3] == "epoch 1/2 | average loss 3.4 | CE 1.25 | KV 0.0338 | CODI 1.5e-07"


def test_a_term_that_is_off_says_so_and_cka_is_shown_where_it_is_on(tmp_path: Path) -> None:
    path = tmp_path / "training_log.txt"
    write_log(path, 0, 2, cka=0.25)
    (line,) = path.read_text().splitlines()
    found = STEP_LINE.fullmatch(line)
    assert found is not None
    assert (found["kv"], found["codi"], found["cka"]) == ("off", "off", "0.25")


def test_a_run_that_ends_within_an_epoch_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "training_log.txt"
    write_log(path, 0, 7, steps=7)
    last = path.read_text().splitlines()[-1]
    assert last.startswith("epoch 2/2 | average loss 6.5 ")  # 6, 7


def test_a_stream_has_no_number_of_epochs(tmp_path: Path) -> None:
    path = tmp_path / "training_log.txt"
    state = state_at(10, 10, per_epoch=10)
    state.num_train_epochs = 2**63 - 1
    TrainingLog(path).on_log(None, state, None, logs=logs_at(10))
    assert path.read_text().splitlines()[-1].startswith("epoch 1/1 ")


@pytest.mark.parametrize("resumed", [0, 3, 4, 5, 6, 8])
def test_after_a_resume_the_log_is_that_of_an_undisturbed_run(tmp_path: Path, resumed: int) -> None:
    write_log(tmp_path / "whole.txt", 0, 10, every=1)
    broken = tmp_path / "broken.txt"
    write_log(broken, 0, 9, every=1)
    with broken.open("a") as file:
        file.write("step 10/10 | lo")  # killed while writing
    write_log(broken, resumed, 10, every=1)
    assert broken.read_text() == (tmp_path / "whole.txt").read_text()


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    state = state_at(2)
    state.is_world_process_zero = False
    TrainingLog(tmp_path / "log.txt").on_log(None, state, None, logs=logs_at(2))
    TrainingLog(tmp_path / "log.txt").on_train_begin(None, state, None)
    assert not (tmp_path / "log.txt").exists()


# ---- live


@pytest.mark.parametrize(
    ("cossim", "word"),
    [(0.95, "Excellent"), (0.90, "Excellent"), (0.8999, "Good"), (0.70, "Good"), (0.5, "Learning"),
     (0.4999, "Adapting"), (0.0, "Adapting"), (-1.0, "Adapting")],
)  # fmt: skip
def test_status_words(cossim: float, word: str) -> None:
    assert status_word(cossim) == word


def test_the_live_line_shows_what_is_known() -> None:
    history: list[dict[str, float]] = []
    assert live(history) == ""
    history.append({"step": 10, "loss": 0.21389, "kv": 0.1})
    assert live(history) == "Loss 0.2139"
    history += [{"step": 10, "eval_ce": 1.0, "eval_cossim": 0.73214}, {"step": 20, "loss": 0.2}]
    assert live(history) == "Loss 0.2000, CosSim 0.7321, Status Good"
    history += [{"step": 20, "eval_ce": 1.0, "eval_cossim": 0.61}]
    assert live(history).endswith("Status Learning")
    assert best_cossim(history) == 0.73214
    assert best_cossim([{"step": 1, "eval_ce": 2.0}]) is None


def test_the_console_has_the_words_of_the_guide(caplog: pytest.LogCaptureFixture) -> None:
    console = GuideConsole()
    console.meter = Meter("train", 10, "updates", now=0.0)
    found = {"eval_ce": 1.0, "eval_cossim": 0.91, "eval_cossim_centred": 0.5, "eval_cossim_mean_predictor": 0.8}
    with caplog.at_level(logging.INFO, logger="kava.train"):
        console.on_log(None, state_at(2, history=[{"loss": 0.5}]), None, logs={"loss": 0.5})
        console.on_log(None, state_at(2, history=[{"loss": 0.5}, found]), None, logs=found)
    assert console.meter.note == "Loss 0.5000, CosSim 0.9100, Status Excellent"
    assert "cossim_centred" not in caplog.messages[-2]  # it is in log.jsonl
    assert caplog.messages[-1] == (
        "held-out CosSim 0.9100 (centred 0.5000; one vector for everything would have 0.8000), Status Excellent"
    )


# ---- the end


def completed(folder: Path) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in (folder / COMPLETED).read_text(encoding="utf-8").splitlines())


def test_completed_holds_settings_and_last_losses(tmp_path: Path) -> None:
    recipe = load_recipe("explicit_hpc", ["rkv.shuffle=time", "training.max_steps=10"])
    history = [
        {"step": 5, "epoch": 0.5, "loss": 3.0, "ce_student": 2.0, "kv": 0.5, "codi": 0.4},
        {"step": 10, "epoch": 1.0, "loss": 2.5, "ce_student": 1.5, "kv": 0.25, "codi": 0.125},
        {"step": 10, "epoch": 1.0, "eval_ce": 1.0, "eval_cossim": 0.75},
    ]
    write_completed(tmp_path, recipe, 10, history, processes=2)
    found = completed(tmp_path)
    wanted = {
        "model": "Qwen/Qwen2.5-7B-Instruct", "teacher": "Qwen/Qwen2.5-7B-Instruct (frozen copy)", "subset_size": "50000",
        "epochs": "1", "steps": "10 optimiser updates", "batch_size": "4", "effective_batch_size": "64",
        "alignment_mode": "per_layer", "kv_method": "rkv", "target_len": "16", "kv_weight": "1", "codi_weight": "0.5",
        "shuffle_kv": "true (time)", "output_dir": str(tmp_path), "final_loss": "2.5", "final_ce": "1.5",
        "final_kv": "0.25", "final_codi": "0.125", "final_cka": "off", "best_cossim": "0.75", "status": "Good",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted


def test_the_baseline_has_no_method_and_no_kv(tmp_path: Path) -> None:
    recipe = load_recipe("explicit_hpc", ["loss.alpha2_kv=0", "loss.alpha1_codi=0"])
    write_completed(tmp_path, recipe, 3, [{"step": 3, "epoch": 0.1, "loss": 2.0, "ce_student": 2.0}])
    found = completed(tmp_path)
    assert [found[name] for name in ("teacher", "kv_method", "alignment_mode", "final_kv", "best_cossim")] == [
        "off"
    ] * 5
    assert (found["shuffle_kv"], found["kv_weight"]) == ("false", "0")


def checkpoint_in(run: Path, step: int, projector: bool = True) -> Path:
    folder = run / f"checkpoint-step{step}"
    folder.mkdir(parents=True)
    save_file({"model.weight": torch.full((2,), float(step))}, folder / "trained.safetensors")
    if projector:
        save_file({"bridge.weight": torch.ones(3)}, folder / "projector.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, folder / name)
    save_recipe(load_recipe("adaptive"), folder / "recipe.yaml")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_card(folder, {"method": "explicit", "trained": ["model.weight"], "frozen_fingerprint": "", "step": step})
    return folder


def test_the_emergency_checkpoint_holds_the_guides_keys_and_continues(tmp_path: Path) -> None:
    from kava.training.checkpoint import choose

    write_emergency(tmp_path / EMERGENCY, checkpoint_in(tmp_path, 5), 5, None)
    write_emergency(tmp_path / EMERGENCY, checkpoint_in(tmp_path, 77), 77, 0.42)
    folder = tmp_path / EMERGENCY
    card = json.loads((folder / "checkpoint.json").read_text())
    assert (card["step"], card["best_cossim"]) == (77, 0.42)
    assert load_file(folder / card["student_state_dict"])["model.weight"].tolist() == [77.0, 77.0]
    assert load_file(folder / card["projector_state_dict"])["bridge.weight"].tolist() == [1.0] * 3
    assert torch.load(folder / card["optimizer_state_dict"]) == {"step": 77}
    recipe = load_recipe("adaptive")
    assert choose(tmp_path, str(folder), recipe) == (folder, [])
    assert choose(tmp_path, "auto", recipe)[0] == tmp_path / "checkpoint-step77"


def test_an_emergency_checkpoint_without_projector_and_without_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_emergency(tmp_path / EMERGENCY, checkpoint_in(tmp_path, 3, projector=False), 3, 0.1)
    card = json.loads((tmp_path / EMERGENCY / "checkpoint.json").read_text())
    assert card["projector_state_dict"] is None
    assert (tmp_path / EMERGENCY / card["student_state_dict"]).is_file()


def test_closing_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = [{"step": 77, "epoch": 1.0, "loss": 0.2139, "ce_student": 0.2}, {"step": 77, "eval_cossim": 0.9}]
    checkpoint_in(tmp_path, 77)
    with caplog.at_level(logging.INFO, logger="kava.train"):
        close(tmp_path, load_recipe("adaptive"), state_at(77, history=history), done=False)
    assert "   Total steps: 77 (optimiser updates)" in caplog.messages
    assert (tmp_path / EMERGENCY / "checkpoint.json").is_file()
    assert not (tmp_path / COMPLETED).exists()
    close(tmp_path, load_recipe("adaptive"), state_at(77, history=history), done=True)
    assert completed(tmp_path)["status"] == "Excellent"
    assert not (tmp_path / EMERGENCY).exists()
    text = summary(77, None, tmp_path, True)
    assert "Best CosSim: not measured" in text
    assert text.isascii()


# ---- the probed batch


def oom(limit: int, error: Exception):
    tried = []

    def step(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise error

    return step, tried


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_ERROR])
@pytest.mark.parametrize(("limit", "wanted"), [(1, 1), (3, 2), (8, 8), (100, 32)])
def test_the_largest_batch_that_fits(limit: int, wanted: int, error: Exception) -> None:
    step, tried = oom(limit, error)
    assert largest_batch(step) == wanted
    assert tried == [size for size in (1, 2, 4, 8, 16, 32) if size <= 2 * wanted]  # nothing behind the first failure


def test_a_probe_that_cannot_succeed_and_a_fault_of_ours() -> None:
    step, _ = oom(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RunError, match="not even one example"):
        largest_batch(step)
    step, _ = oom(4, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_batch(step)


def test_without_room_the_next_size_is_not_tried() -> None:
    step, tried = oom(100, CPU_ERROR)
    assert largest_batch(step, fits=lambda size: size <= 4) == 4
    assert tried == [1, 2, 4]
    assert largest_batch(step, fits=lambda _: False) == 1  # one example is always tried


def test_a_real_recipe_is_measured_with_its_longest_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    collate = probe_module.Collator.__call__

    def watched(self: Any, rows: Any) -> Any:
        lengths.append([len(row) for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(probe_module.Collator, "__call__", watched)
    monkeypatch.setattr(probe_module, "SIZES", (1, 2, 4))
    recipe = load_recipe("explicit_embedded", [*EMBEDDED, "training.batch_size=1"])
    assert measured_batch(recipe) == 4
    *_, last = lengths
    assert len(last) == 4
    assert last == sorted(last, reverse=True)
    assert max(max(one) for one in lengths) == last[0]
