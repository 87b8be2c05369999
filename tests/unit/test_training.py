"""Whole runs of `train`: what they write, and that a run which was stopped ends in the same bits as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from compare import tiny_base
from hub import without_hashes
from kava.backbone.artifact import WEIGHTS, load_student
from kava.config import Recipe, load_recipe
from kava.errors import CheckpointError, ConfigError, DataError, RunError
from kava.files import sole_owner
from kava.objective.dim_scale import DimScale
from kava.training import folder as folder_module
from kava.training import method_line as lines_module
from kava.training.aux_state import FILE as AUX
from kava.training.aux_state import TRAINING_ONLY
from kava.training.callbacks import cut_after
from kava.training.checkpoint import find
from kava.training.folder import TrainResult, update
from kava.training.processes import check_variables
from kava.training.run import train
from kava.training.trainer import KavaTrainer
from kava.training.workers import ended_afterwards, fetching, more_than_cores
from struck import Command

TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
SETTINGS = (
    "dataset.generator.train_size=24", "dataset.generator.val_size=4", "evaluation.max_new_tokens=4",
    "training.max_steps=9", "training.batch_size=4", "training.learning_rate=1e-3", "loss.alpha1_codi=1",
    "lora.enabled=true", "lora.r=2", "lora.dropout=0.1", "latent.num_tokens=3", "latent.num_iterations=2",
    "logging.logging_steps=1", "logging.eval_steps=3", "logging.save_steps=2", "logging.report_to=[]",
    "system.device=cpu", "training.tokens_per_piece=150",  # pieces, in every run that is stopped, too
)  # fmt: skip
LAST = "checkpoint-step9"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with dropout in its attention."""
    return tiny_base(tmp_path_factory.mktemp("base"), tied=True, attention_dropout=0.1)


def recipe_for(base: Path, *settings: str) -> Recipe:
    return load_recipe("debug", [f"model.name={base}", *SETTINGS, *settings])


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(recipe_for(base), folder, quiet=True) == TrainResult(folder, 9, "accuracy", read_best(folder), 0)
    return folder


def read_best(folder: Path) -> float | None:
    return json.loads((folder / LAST / "trainer_state.json").read_text())["best_metric"]


def journal(folder: Path) -> list[dict[str, Any]]:
    """log.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(folder: Path, wanted: Path) -> None:
    """Weights, optimizer, best student and every logged number, bit for bit."""
    for place in (LAST, "best_checkpoint"):
        assert (folder / place / WEIGHTS).read_bytes() == (wanted / place / WEIGHTS).read_bytes(), place
    mine, theirs = (torch.load(path / LAST / "optimizer.pt")["state"] for path in (folder, wanted))
    assert all(torch.equal(mine[key][part], theirs[key][part]) for key in theirs for part in theirs[key])
    training = [
        [line for line in journal(path) if "loss" in line or "eval_accuracy" in line] for path in (folder, wanted)
    ]
    assert training[0] == training[1]


# -- what a run leaves behind ----------------------------------------------------------------------------------------


def test_the_folder_explains_the_run(undisturbed: Path, base: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    wanted = {"recipe.yaml", "meta.json", "data_card.json", "train.log", "log.jsonl", "best_checkpoint"}
    assert names - {"logs", ".lock"} == wanted | {"checkpoint-step8", LAST, "checkpoint-ep1"}
    assert load_recipe(undisturbed / "recipe.yaml") == recipe_for(base)
    assert yaml.safe_load((undisturbed / "recipe.yaml").read_text())["training"]["batch_size"] == 4
    meta = json.loads((undisturbed / "meta.json").read_text())
    assert meta["finished"] is True
    assert meta["steps"] == 9
    assert {"git", "versions", "device", "command", "data", "trained_parameters"} <= meta.keys()
    card = json.loads((undisturbed / "data_card.json").read_text())
    assert card == meta["data"]
    assert card["skipped"] == 0
    text = (undisturbed / "train.log").read_text()
    assert "done: 9 updates" in text
    assert text.isascii()


def test_log_lines_hold_every_term_and_the_health_of_the_latents(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 10))
    keys = {
        "ce_student", "ce_teacher", "codi", "kv", "grad_norm", "grad_projection", "grad_embedding", "grad_backbone",
        "latent_norm", "latent_cosine", "jacobi_residual", "kept_share", "kv_share_k", "kv_share_v_1",
        "tokens_per_second", "learning_rate", "epoch",
    }  # fmt: skip
    for line in training:
        assert keys <= line.keys(), keys - line.keys()
        assert all(isinstance(line[key], float) for key in keys)
        assert 0 < line["kept_share"] <= 1
    loss = recipe_of(undisturbed).loss
    first = training[0]
    parts = first["ce_student"] + first["ce_teacher"] + loss.alpha1_codi * first["codi"] + loss.alpha2_kv * first["kv"]
    assert first["loss"] == pytest.approx(parts, abs=1e-3)
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [3, 6, 9]
    assert training[-1]["ce_teacher"] < training[0]["ce_teacher"]


def recipe_of(folder: Path) -> Recipe:
    return load_recipe(folder / "recipe.yaml")


def test_best_checkpoint_is_a_student(undisturbed: Path) -> None:
    model, _, recipe = load_student(undisturbed / "best_checkpoint")
    assert recipe == recipe_of(undisturbed)
    assert all(torch.isfinite(weight).all() for weight in model.trained().values())
    card = json.loads((undisturbed / "best_checkpoint" / "kava.json").read_text())
    assert card["step"] in (3, 6, 9)
    assert card["validation"]["accuracy"] == read_best(undisturbed)


@pytest.mark.long
def test_the_seed_decides_everything(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    runs = {}
    for seed in (42, 7):
        train(recipe_for(base, f"system.seed={seed}"), tmp_path / str(seed), quiet=True)
        runs[seed] = (tmp_path / str(seed) / LAST / WEIGHTS).read_bytes()
    assert runs[42] == (undisturbed / LAST / WEIGHTS).read_bytes() != runs[7]


# -- resume ----------------------------------------------------------------------------------------------------------


def test_an_occupied_folder_is_refused(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in undisturbed.iterdir())
    with pytest.raises(RunError, match="already holds a run"):
        train(recipe_for(base), undisturbed, quiet=True)
    with pytest.raises(RunError, match=r"other settings.*training\.learning_rate"):
        train(recipe_for(base, "training.learning_rate=2e-3"), undisturbed, resume="auto", quiet=True)
    with pytest.raises(CheckpointError, match="no such folder"):
        train(recipe_for(base), undisturbed, resume=str(tmp_path / "nowhere"), quiet=True)
    assert sorted(path.name for path in undisturbed.iterdir()) == before


def tear(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])


def half_done(undisturbed: Path, folder: Path) -> Path:
    """A copy of the run that does not call itself finished."""
    shutil.copytree(undisturbed, folder)
    update(folder, finished=False)
    return folder


def test_a_torn_checkpoint_is_named_and_the_one_before_is_taken(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The newest two are torn, so three updates of an epoch that has begun are made again: to the same bits."""
    folder = half_done(undisturbed, tmp_path / "run")
    for torn in (LAST, "checkpoint-step8"):
        tear(folder / torn, "optimizer.pt")
    train(recipe_for(base), folder, resume="auto", quiet=True)
    text = (folder / "train.log").read_text()
    assert f"{LAST} is incomplete and is passed over: optimizer.pt is torn" in text
    assert "continuing from " + str(folder / "checkpoint-ep1") in text
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", WEIGHTS, "trainer_state.json", "kava.json"])
def test_every_file_of_a_checkpoint_is_looked_at(name: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = half_done(undisturbed, tmp_path / "run")
    if name != "kava.json":
        tear(folder / LAST, name)
        assert [found.path.name for found in find(folder)[0]] == ["checkpoint-ep1", "checkpoint-step8"]
    (folder / LAST / name).unlink()
    whole, notes = find(folder)
    assert [found.path.name for found in whole] == ["checkpoint-ep1", "checkpoint-step8"]
    assert len(notes) == 1
    assert name in notes[0]


def test_a_named_torn_checkpoint_is_refused(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = half_done(undisturbed, tmp_path / "run")
    tear(folder / LAST, "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is torn"):
        train(recipe_for(base), folder, resume=str(folder / LAST), quiet=True)


def test_a_continued_run_has_the_moments_of_its_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loss.kv_scale dim: bit for bit, also where a calibration now would measure others; a new stage measures its own."""
    recipe = recipe_for(base, "loss.kv_scale=dim", "training.max_steps=4", "logging.eval_steps=2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole, quiet=True)
    assert (
        "loss.kv_scale: 48 dimensions measured on " in (whole / "train.log").read_text()
    )  # parts 2, layers 2, heads 2, D 6
    moments = load_file(whole / "checkpoint-step4" / AUX)
    assert {name for name in moments if torch.isfinite(moments[name]).all()} == {"kv_scale.mean", "kv_scale.inverse"}
    shutil.rmtree(half_done(whole, cut) / "checkpoint-step4")

    def wrong(scale: DimScale, measured: Any) -> int:
        scale.mean.fill_(3.0)
        scale.inverse.fill_(7.0)
        return 2

    with monkeypatch.context() as patch:
        patch.setattr(DimScale, "set", wrong)
        train(recipe, cut, resume="auto", quiet=True)
    for name in (WEIGHTS, AUX):
        assert (cut / "checkpoint-step4" / name).read_bytes() == (whole / "checkpoint-step4" / name).read_bytes()
    next_stage = recipe.changed("training", start_from=str(whole / "best_checkpoint"), max_steps=1)
    train(next_stage, tmp_path / "next", quiet=True)
    new = load_file(tmp_path / "next" / "checkpoint-step1" / AUX)
    assert new.keys() == moments.keys()
    assert not torch.equal(new["kv_scale.mean"], moments["kv_scale.mean"])
    assert load_student(whole / "best_checkpoint")[2] == recipe


def test_a_decoder_of_steps_is_continued_and_is_no_part_of_a_finished_student(base: Path, tmp_path: Path) -> None:
    """loss.step_decoder: bit for bit from its checkpoint, and in no file of best_checkpoint; a new stage has a new one."""
    own = ("loss.step_decoder=0.5", "loss.step_decoder_layers=1", "training.max_steps=4", "logging.eval_steps=2")
    recipe, whole, cut = recipe_for(base, *own), tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole, quiet=True)
    assert all(line["step_decoder"] > 0 for line in journal(whole) if "loss" in line)
    decoder = load_file(whole / "checkpoint-step4" / AUX)
    assert all(name.startswith(TRAINING_ONLY) for name in decoder)
    before = load_file(whole / "checkpoint-step2" / AUX)
    assert all(not torch.equal(weight, before[name]) for name, weight in decoder.items() if "layers.0.mlp" in name)
    assert not any("layers.1." in name for name in decoder)
    best = whole / "best_checkpoint"
    assert not any("decoder" in name for file in best.glob("*.safetensors") for name in load_file(file))
    assert not (best / AUX).exists()
    shutil.rmtree(half_done(whole, cut) / "checkpoint-step4")
    train(recipe, cut, resume="auto", quiet=True)
    for name in (WEIGHTS, AUX):
        assert (cut / "checkpoint-step4" / name).read_bytes() == (whole / "checkpoint-step4" / name).read_bytes()
    for begun in (best, whole / "checkpoint-step4"):
        next_stage = recipe.changed("training", start_from=str(begun), max_steps=1)
        train(next_stage, tmp_path / begun.name, quiet=True)


def test_a_curriculum_of_stages_is_continued_and_may_reset_the_optimizer(base: Path, tmp_path: Path) -> None:
    """Stages 0, 0, 1, 2 of four updates; with latent.stage_reset the last update is the first of its moments."""
    own = ("loss.alpha1_codi=0", "loss.alpha2_kv=0", "loss.teacher_ce=0", "latent.method=sequential")
    own += ("latent.stage_latents=3", "latent.stage_share=0.3", "latent.stage_reset=true")
    recipe, whole, cut = recipe_for(base, *own, "training.max_steps=4"), tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole, quiet=True)
    assert [line["stage"] for line in journal(whole) if "ce_student" in line] == [0, 0, 1, 2]
    state = torch.load(whole / "checkpoint-step4" / "optimizer.pt", weights_only=True)["state"]
    assert {float(moments["step"]) for moments in state.values()} == {1.0}
    shutil.rmtree(half_done(whole, cut) / "checkpoint-step4")
    train(recipe, cut, resume="auto", quiet=True)
    assert (cut / "checkpoint-step4" / WEIGHTS).read_bytes() == (whole / "checkpoint-step4" / WEIGHTS).read_bytes()


later = pytest.mark.long


@pytest.mark.parametrize(
    ("when", "step"),
    [("update", 3), ("validation", 6), *(pytest.param(*case, marks=later) for case in [("update", 4), ("update", 6)])],
)
def test_a_signal_saves_stops_and_the_rest_follows_bit_for_bit(
    when: str, step: int, base: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM during an update, and during the validation after it (updates 3 and 6 are validated, 6 ends an epoch)."""

    def interrupted(right: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if len(journal_so_far(folder)) == (step - 1 if when == "update" else step):
                signal.raise_signal(signal.SIGTERM)
            return right(*given, **named)

        return call

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if when == "update":
            patch.setattr(KavaTrainer, "compute_loss", interrupted(KavaTrainer.compute_loss))
        else:
            patch.setattr(lines_module, "score", interrupted(lines_module.score))
        outcome = train(recipe_for(base), folder, quiet=True)
    assert outcome.exit_code == 128 + signal.SIGTERM
    assert outcome.steps == step
    assert json.loads((folder / "meta.json").read_text())["finished"] is False
    assert train(recipe_for(base), folder, resume="auto", quiet=True).exit_code == 0
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_stream_goes_on_in_its_second_pass(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    rows = [{"question": f"{i}+1?", "steps": [f"{i}+1={i + 1}"], "answer": i + 1} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stream = (f"dataset.name={tmp_path / 'rows.jsonl'}", "dataset.streaming=true", "dataset.val_size=0")
    kept = [words for words in SETTINGS if not words.startswith(("dataset.", "evaluation."))]
    words = (*stream, "dataset.drop_last_step=false", "logging.save_steps=7", f"system.num_workers={workers}")
    recipe = load_recipe("debug", [f"model.name={base}", *kept, *words])
    folder, whole = tmp_path / "run", tmp_path / "whole"
    train(recipe, whole, quiet=True)
    compute = KavaTrainer.compute_loss

    def stopping(self: KavaTrainer, *inputs: Any, **named: Any) -> Any:
        if len(journal_so_far(folder)) == 6:  # five updates are a pass
            signal.raise_signal(signal.SIGTERM)
        return compute(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(KavaTrainer, "compute_loss", stopping)
        assert train(recipe, folder, quiet=True).steps == 7
    assert train(recipe, folder, resume="auto", quiet=True).exit_code == 0
    last, wanted = (path / "checkpoint-ep1" / WEIGHTS for path in (folder, whole))
    assert last.read_bytes() == wanted.read_bytes()
    losses = [line["loss"] for line in journal_so_far(whole)]
    assert losses == [line["loss"] for line in journal_so_far(folder)]
    assert len(set(losses)) == len(losses) == 9


def journal_so_far(folder: Path) -> list[dict[str, Any]]:
    """The updates logged so far."""
    return [line for line in journal(folder) if "loss" in line] if (folder / "log.jsonl").exists() else []


def test_sigterm_to_the_process_group_of_a_run_with_loader_workers(
    base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """As from `timeout`, a closed terminal or a scheduler: the workers must not die before the update is done."""
    folder = tmp_path / "run"
    words = ("train", "--config", "debug", "--output_dir", str(folder), f"model.name={base}", *SETTINGS)
    command = Command(tmp_path / "said", *words, "system.num_workers=2", moment="update", nth=4).standing()
    assert len(psutil.Process(command.pid).children()) == 2
    command.send(signal.SIGTERM, "group")
    assert command.end() == 128 + signal.SIGTERM, command.out
    assert "Traceback" not in command.out
    assert [saved.step for saved in find(folder)[0]] == [2, 4]
    assert train(recipe_for(base), folder, resume="auto", quiet=True).exit_code == 0
    assert_same_run(folder, undisturbed)


# -- checkpoints of other runs, foreign files, links ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["auto", "named"])
def test_a_checkpoint_of_another_run_is_refused(how: str, base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Else this run's meta.json would say that its settings did what they never did."""
    other = recipe_for(base, "training.learning_rate=2e-3", "system.seed=7")
    folder = tmp_path / "run"
    resume = str(undisturbed / LAST)
    if how == "auto":
        shutil.copytree(undisturbed / LAST, folder / LAST)
        resume = "auto"
    with pytest.raises(CheckpointError, match=r"checkpoint of another run: .*training\.learning_rate was 0\.001"):
        train(other, folder, resume=resume, quiet=True)
    assert not (folder / "meta.json").exists()


@pytest.mark.parametrize("told_by", ["card", "meta"])
def test_a_checkpoint_of_other_data_is_refused(told_by: str, base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Checkpoints name their data; of an older one the run's meta.json beside it tells."""
    start = without_hashes(shutil.copytree(undisturbed / LAST, tmp_path / "other" / LAST))
    card = json.loads((start / "kava.json").read_text())
    assert card["data_sha256"] == json.loads((undisturbed / "meta.json").read_text())["data"]["sha256"]
    if told_by == "card":
        card["data_sha256"] = "0123"
    else:
        del card["data_sha256"]
        (tmp_path / "other" / "meta.json").write_text('{"data": {"sha256": "0123"}}')
    (start / "kava.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match="was made on other training data"):
        train(recipe_for(base), tmp_path / "run", resume=str(start), quiet=True)
    assert not (tmp_path / "run" / "meta.json").exists()


def test_a_run_that_goes_on_in_another_folder(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """It has the best student as well, and says where it began; settings that change nothing learnt are free."""
    free = recipe_for(base, "logging.save_steps=4", "about.title=elsewhere")
    start = undisturbed / "checkpoint-ep1"
    assert train(free, tmp_path / "run", resume=str(start), quiet=True).steps == 9
    assert_same_weights(tmp_path / "run", undisturbed)
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert (meta["finished"], meta["continued_from"]) == (True, str(start))


def assert_same_weights(folder: Path, wanted: Path) -> None:
    for place in (LAST, "best_checkpoint"):
        assert (folder / place / WEIGHTS).read_bytes() == (wanted / place / WEIGHTS).read_bytes(), place


def test_a_best_value_without_its_student_is_not_kept(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = half_done(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "best_checkpoint")
    outcome = train(recipe_for(base), folder, resume="auto", quiet=True)
    assert outcome.best is None  # every validation was before the last checkpoint
    assert "best_checkpoint is not there" in (folder / "train.log").read_text()
    assert (folder / "best_checkpoint").is_dir()


class Foreign:
    """What torch does not load: it could run code."""

    def __reduce__(self) -> Any:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "name",
    ["rng_state.pth", *(pytest.param(f"{name}.pt", marks=pytest.mark.long) for name in ("optimizer", "scheduler"))],
)
def test_a_foreign_pickle_is_one_line_that_names_the_file(
    name: str, base: Path, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = half_done(undisturbed, tmp_path / "run")
    without_hashes(folder / LAST)
    torch.save(Foreign(), folder / LAST / name)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        train(recipe_for(base), folder, resume=str(folder / LAST), quiet=True)
    assert "\n" not in caught.value.message
    torch.save({"state": {}, "param_groups": []}, folder / LAST / name)  # plain, but of nothing here
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        train(recipe_for(base), folder, resume=str(folder / LAST), quiet=True)
    assert "this must not run" not in capfd.readouterr().out


def test_auto_passes_over_a_foreign_pickle_and_a_stray_scaler(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = half_done(undisturbed, tmp_path / "run")
    without_hashes(folder / LAST)
    torch.save(Foreign(), folder / LAST / "optimizer.pt")
    (folder / "checkpoint-step8" / "scaler.pt").write_bytes(b"stray")
    train(recipe_for(base), folder, resume="auto", quiet=True)
    text = (folder / "train.log").read_text()
    assert f"{LAST} is passed over: optimizer.pt is no state" in text
    assert "scaler.pt is not read" in text
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("name", [WEIGHTS, "recipe.yaml", "kava.json"])
def test_auto_passes_over_a_damaged_checkpoint(name: str, base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One flipped bit: the checkpoint and the file are named, the one before is continued, to the same bits."""
    folder = half_done(undisturbed, tmp_path / "run")
    path = folder / LAST / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"--resume .*{LAST}: .*{name}"):
        train(recipe_for(base), folder, resume=str(folder / LAST), quiet=True)
    train(recipe_for(base), folder, resume="auto", quiet=True)
    text = (folder / "train.log").read_text()
    assert f"{LAST} is passed over: {folder / LAST / name}" in text
    assert "continuing from " + str(folder / "checkpoint-step8") in text
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_one_other_byte_of_the_training_state_is_named(
    name: str, base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = half_done(undisturbed, tmp_path / "run") / LAST
    path = folder / name
    content = bytearray(path.read_bytes())
    place = content.index(b'"max_steps": ') + 13 if name.endswith("json") else len(content) // 2
    content[place] ^= 1  # 9 becomes 8: still JSON
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^--resume {folder}: {path} is not the file that was saved"):
        train(recipe_for(base), folder.parent, resume=str(folder), quiet=True)


def test_links_to_a_scratch_disk(base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Checkpoints and best student moved away and linked: rotation takes the links, nothing outside is deleted."""
    folder, scratch = half_done(undisturbed, tmp_path / "run"), tmp_path / "scratch"
    scratch.mkdir()
    shutil.rmtree(folder / LAST)
    (folder / "checkpoint-step8").rename(folder / "checkpoint-step3")
    for name in ("checkpoint-ep1", "checkpoint-step3", "best_checkpoint"):
        (folder / name).rename(scratch / name)
        (folder / name).symlink_to(scratch / name)
    gone = folder / "checkpoint-step5"
    gone.symlink_to(scratch / "purged")
    (folder / ".partial-old-best_checkpoint").symlink_to(scratch / "best_checkpoint")  # what earlier versions left
    (folder / ".partial-old-checkpoint-step1").symlink_to(scratch / "purged")
    more = recipe_for(base, "logging.save_steps=1", "logging.save_total_limit=1", "logging.eval_steps=1")
    state = without_hashes(scratch / "checkpoint-step3") / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_metric": -1.0}))
    train(more, folder, resume="auto", quiet=True)
    assert not (folder / "best_checkpoint").is_symlink()
    assert (folder / "best_checkpoint").is_dir()
    assert not (folder / "checkpoint-step3").is_symlink()
    assert {path.name for path in scratch.iterdir()} == {"checkpoint-ep1", "checkpoint-step3", "best_checkpoint"}
    assert not list(folder.glob(".partial-*"))
    assert "checkpoint-step3 was a link and is removed" in (folder / "train.log").read_text()


def test_the_journal_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_accuracy": 0.5}, {"step": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    cut_after(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    cut_after(path, 0)
    assert path.read_text() == ""
    cut_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.long
def test_a_killed_loader_worker_is_one_line_and_loses_nothing(
    base: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the out-of-memory killer, in an update between two checkpoints."""

    def killing(right: Any) -> Any:
        def call(self: KavaTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                for worker in multiprocessing.active_children():
                    worker.kill()
            return right(self, *args, **kwargs)

        return call

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(KavaTrainer, "compute_loss", killing(KavaTrainer.compute_loss))
        patch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))  # seconds between two looks
        with pytest.raises(RunError, match="a process that prepares batches was killed after update") as caught:
            train(recipe_for(base, "system.num_workers=2"), folder, quiet=True)
    assert "lower system.num_workers (now 2)" in str(caught.value)
    assert "\n" not in caught.value.message
    assert find(folder)[0][-1].step == len([line for line in journal(folder) if "loss" in line])
    train(recipe_for(base), folder, resume="auto", quiet=True)
    assert_same_run(folder, undisturbed)


@later
def test_resume_of_an_empty_folder_starts_and_of_a_finished_run_changes_nothing(
    base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    train(recipe_for(base), folder, resume="auto", quiet=True)
    assert "starting from the beginning" in (folder / "train.log").read_text()
    assert train(recipe_for(base), folder, resume="auto", quiet=True).steps == 9
    assert_same_run(folder, undisturbed)


@later
def test_checkpointing_and_unpacked_passes_train_the_same_student(base: Path, tmp_path: Path) -> None:
    plain = tiny_base(tmp_path / "base", tied=True)
    weights = []
    for name, settings in {
        "plain": (),
        "checkpointing": ("training.gradient_checkpointing=true",),
        "both": ("training.gradient_checkpointing=true", "training.packed=false"),
    }.items():
        few = ("training.max_steps=2", "lora.dropout=0")
        train(recipe_for(plain, *few, *settings), tmp_path / name, quiet=True)
        weights.append(load_file(tmp_path / name / "checkpoint-step2" / WEIGHTS))
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        for weight, value in other.items():
            torch.testing.assert_close(value, weights[0][weight], rtol=1e-4, atol=1e-5, msg=weight)


# -- what stops a run ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(base: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"not finite in update 1 .*ce_student nan.*example ids of the batch: \S+, \S+"):
        train(recipe_for(broken), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


# -- real processes --------------------------------------------------------------------------------------------------

LONG = ("training.max_steps=40", "logging.save_steps=3", "logging.eval_steps=10")


def start(base: Path, folder: Path, *words: str) -> subprocess.Popen:
    settings = [f"model.name={base}", *(s for s in SETTINGS if s.split("=")[0] not in {w.split("=")[0] for w in LONG})]
    command = [sys.executable, "-m", "kava", "train", "--config", "debug", "--output_dir", str(folder)]
    return subprocess.Popen(
        [*command, *settings, *LONG, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(process: subprocess.Popen, folder: Path, step: int) -> None:
    while process.poll() is None and len(journal_so_far(folder)) < step:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""


@pytest.fixture(scope="module")
def forty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forty") / "run"
    process = start(base, folder)
    assert process.wait(900) == 0, process.stderr.read() if process.stderr else ""
    return folder


def assert_same_end(folder: Path, wanted: Path) -> None:
    for place in ("checkpoint-step40", "best_checkpoint"):
        assert (folder / place / WEIGHTS).read_bytes() == (wanted / place / WEIGHTS).read_bytes(), place
    assert journal_so_far(folder) == journal_so_far(wanted)


@pytest.mark.long
def test_sigterm_saves_and_resume_ends_in_the_same_bits(base: Path, forty: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(base, folder)
    wait_for(process, folder, 11)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert (folder / f"checkpoint-step{len(journal_so_far(folder))}").is_dir() or list(folder.glob("checkpoint-ep*"))
    process = start(base, folder, "--resume", "auto")
    assert process.wait(900) == 0, process.stderr.read() if process.stderr else ""
    assert_same_end(folder, forty)


@pytest.mark.long
def test_kill_at_random_moments_ends_in_the_same_bits(base: Path, forty: Path, tmp_path: Path) -> None:
    folder, draw = tmp_path / "run", random.Random(time.time_ns())
    moments = sorted(draw.sample(range(2, 38), 3))
    print("killed after updates", moments)
    for moment in moments:
        process = start(base, folder, *(["--resume", "auto"] if folder.exists() else []))
        wait_for(process, folder, moment)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.wait(60)
    process = start(base, folder, "--resume", "auto")
    assert process.wait(900) == 0, process.stderr.read() if process.stderr else ""
    assert_same_end(folder, forty)


def test_a_folder_in_use_is_refused_and_a_resumed_run_waits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "PATIENCE", 0.3)
    (tmp_path / "run").mkdir()
    with (
        sole_owner(tmp_path / "run" / folder_module.LOCK),
        pytest.raises(RunError, match="another process is at work in"),
    ):
        train(recipe_for(base), tmp_path / "run", "auto", quiet=True)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


class BadRow(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise DataError("rows.jsonl, line 7: field 'question' is empty", "mend the row")


def test_a_bad_row_that_a_worker_meets_is_the_error_that_it_raised() -> None:
    with ended_afterwards(), pytest.raises(DataError) as caught, fetching():
        next(iter(torch.utils.data.DataLoader(BadRow(), num_workers=1)))
    assert caught.value.message == "rows.jsonl, line 7: field 'question' is empty"
    assert caught.value.hint == "mend the row"


def test_more_workers_than_cores_are_said() -> None:
    assert more_than_cores(1) is None
    assert str(more_than_cores(4096)).startswith("system.num_workers is 4096, more than the ")


@pytest.mark.parametrize("before", [[], ["out"], ["out", "out/run"], ["out", "out/run", "out/run/note"]])
def test_a_refused_run_leaves_nothing_behind(before: list[str], tmp_path: Path) -> None:
    for name in before:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no such file"):
        train(load_recipe("debug", ["dataset.name=./nothing.jsonl"]), tmp_path / "out" / "run", quiet=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left - {"out/run/.lock", "out/run/train.log"} == set(before)
    assert len(left) == len(before) or "out/run/note" in before  # a folder with files of the user's keeps its log


def test_a_run_whose_parent_was_killed_saves_and_stops(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAVA_PARENT", "1" if os.getppid() != 1 else "2")
    outcome = train(recipe_for(base), tmp_path / "run", quiet=True)
    assert (outcome.exit_code, outcome.steps) == (128 + signal.SIGTERM, 1)
    monkeypatch.delenv("KAVA_PARENT")
    assert train(recipe_for(base), tmp_path / "run", "auto", quiet=True).steps == 9


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE = 'x' is no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '' is no number"),
        ({"WORLD_SIZE": "0"}, "RANK = 0 is none of WORLD_SIZE = 0"),
        ({"WORLD_SIZE": "4"}, "not set: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "2"}, "RANK = 2 is none of WORLD_SIZE = 1"),
        ({"LOCAL_RANK": "-2"}, "LOCAL_RANK = '-2' is no number"),
    ],
)
def test_incomplete_variables_of_processes_are_refused(variables: dict[str, str], words: str):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_variables(variables)


def test_variables_of_torchrun_and_of_one_process_pass():
    check_variables({})
    check_variables({"LOCAL_RANK": "-1"})
    torchrun = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}
    check_variables(torchrun)
