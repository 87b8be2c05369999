"""Runs of a mixture: stopped and continued, loaded elsewhere, begun from another run's end, on both lines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import many
from kava.backbone.artifact import WEIGHTS, load_weights
from kava.backbone.load import build_model
from kava.config import Recipe, load_recipe
from kava.errors import CheckpointError
from kava.objective.records import Step
from kava.training import aux_state as aux_state
from kava.training import method_line as lines_module
from kava.training.aux_state import FILE
from kava.training.data import load_data
from kava.training.method_line import explicit_line
from kava.training.run import train
from kava.training.trainer import KavaTrainer

TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
SHORT = (
    "dataset.generator.train_size=16", "dataset.generator.val_size=4", "training.batch_size=4", "training.max_steps=9",
    "logging.logging_steps=1", "logging.eval_steps=3", "logging.save_steps=2", "logging.report_to=[]",
    "system.device=cpu", "loss.alpha1_codi=0", "training.tokens_per_piece=150",
)  # fmt: skip
ROUTED = (
    "mixture.fusion=learnable", "mixture.per_layer=true", "mixture.router_dropout=0.3", "mixture.entropy=diverse",
    "mixture.temperature=2", "mixture.temperature_step=0.5", "projector.learning_rate=0.01",
)  # fmt: skip
LAST = "checkpoint-step9"
FILES = ("routing.jsonl", "layer_loss.jsonl", "routing_samples.json", "alignment.json")


def recipe_for(*settings: str, teachers: tuple[str, ...] = ("llama", "gpt2")) -> Recipe:
    given = [one for one in many.settings(*teachers) if one not in many.CHAINS]
    return load_recipe("explicit_embedded", [*given, *SHORT, *settings])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(recipe_for(*ROUTED), folder, quiet=True).exit_code == 0
    return folder


def journal(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """A file of lines without what a clock decides."""
    path = folder / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(folder: Path, wanted: Path) -> None:
    """Student, adapters, router, optimizer and every logged number, bit for bit."""
    for place in (LAST, "best_checkpoint"):
        for name in (WEIGHTS, FILE):
            assert (folder / place / name).read_bytes() == (wanted / place / name).read_bytes(), f"{place}/{name}"
    mine, theirs = (torch.load(path / LAST / "optimizer.pt") for path in (folder, wanted))
    assert mine["param_groups"] == theirs["param_groups"]
    for key, state in theirs["state"].items():
        assert all(torch.equal(mine["state"][key][part], value) for part, value in state.items())
    for name in FILES:
        assert (folder / name).read_text() == (wanted / name).read_text(), name
    ours, others = ([x for x in journal(path) if "loss" in x or "eval_ce" in x] for path in (folder, wanted))
    assert ours == others


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("update", 6),
        pytest.param("validation", 6, marks=pytest.mark.long),  # in the second epoch: the temperature has fallen
        pytest.param("validation", 4, marks=pytest.mark.long),  # at an epoch's end
        pytest.param("update", 3, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_ends_in_the_same_bits(
    when: str, step: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def interrupted(right: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            done = len([line for line in journal(folder) if "loss" in line])
            if done == (step - 1 if when == "update" else step):
                signal.raise_signal(signal.SIGTERM)
            return right(*given, **named)

        return call

    with monkeypatch.context() as patch:
        if when == "update":
            patch.setattr(KavaTrainer, "compute_loss", interrupted(KavaTrainer.compute_loss))
        else:
            patch.setattr(lines_module, "held_out", interrupted(lines_module.held_out))
        outcome = train(recipe_for(*ROUTED), folder, quiet=True)
    assert (outcome.exit_code, outcome.steps) == (128 + signal.SIGTERM, step)
    assert train(recipe_for(*ROUTED), folder, resume="auto", quiet=True).exit_code == 0
    assert_same_run(folder, undisturbed)


def test_all_that_is_trained_is_in_every_folder_and_has_moved(undisturbed: Path) -> None:
    start, end = (load_file(undisturbed / name / FILE) for name in ("checkpoint-step6", LAST))
    assert start.keys() == end.keys() == load_file(undisturbed / "best_checkpoint" / FILE).keys()
    still = {name for name in end if torch.equal(start[name], end[name])}
    assert still == {name for name in end if name.endswith((".shares", "mixture.initial_kv_loss", "mixture.reference"))}
    assert any("router" in name for name in end)


def test_the_routing_file_tells_the_temperature_of_its_update(undisturbed: Path) -> None:
    """16 examples in fours: an epoch is four updates."""
    found = [line["temperature"] for line in journal(undisturbed, "routing.jsonl")]
    assert found == [2.0] * 4 + [1.5] * 4 + [1.0]


@pytest.mark.long
def test_a_new_process_measures_the_same(undisturbed: Path) -> None:
    """The last checkpoint's held-out numbers, from nothing but its folder."""
    lines = {line["step"]: line for line in journal(undisturbed) if "eval_ce" in line}
    words = [sys.executable, __file__, str(undisturbed / LAST)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    found = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    measured = json.loads(found.stdout.splitlines()[-1])
    wanted = {name.removeprefix("eval_"): value for name, value in lines[9].items() if name.startswith("eval_")}
    assert {"kv", "kv_llama", "kv_gpt2", "weight_llama", "entropy"} <= measured.keys()
    for name, value in measured.items():
        assert value == wanted[name], name


def measure_again(folder: Path) -> dict[str, float] | None:
    recipe = load_recipe(folder / "recipe.yaml")
    model, tokenizer = build_model(recipe)
    data = load_data(recipe, tokenizer)
    line = explicit_line(recipe, model, tokenizer, data, torch.device("cpu"), lambda: False)
    load_weights(line.objective.model, folder)
    aux_state.load(line.objective, folder)
    return line.validation.measure(Step(epoch=2))


# -- stages ----------------------------------------------------------------------------------------------------------


def first_validation(folder: Path) -> dict[str, Any]:
    return next(line for line in journal(folder) if "eval_ce" in line)


def test_a_stage_begins_with_the_adapters_and_the_student_of_the_one_before(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Any] = {}

    def watch(self: KavaTrainer, *_: Any, **__: Any) -> Any:
        begun["own"] = {name: value.detach().clone() for name, value in self.objective.aux_state().items()}
        begun["student"] = {name: value.detach().clone() for name, value in self.objective.model.trained().items()}
        raise KeyboardInterrupt

    monkeypatch.setattr(KavaTrainer, "train", watch)
    fresh: dict[str, torch.Tensor] = {}
    for start in (None, undisturbed / LAST):
        more = () if start is None else (f"training.start_from={start}",)
        with pytest.raises(KeyboardInterrupt):
            train(recipe_for(*ROUTED, *more), tmp_path / str(bool(start)), quiet=True)
        fresh = fresh or begun["own"]
    saved, student = load_file(undisturbed / LAST / FILE), load_file(undisturbed / LAST / WEIGHTS)
    for name, value in begun["own"].items():
        if name == "source.mixture.initial_kv_loss":
            assert not torch.equal(value, saved[name])  # this stage's own start
            continue
        wanted = fresh if name.startswith("source.mixture.fusion.") else saved
        assert torch.equal(value, wanted[name]), name
    assert any(not torch.equal(fresh[name], saved[name]) for name in fresh if "router" in name)
    for name, value in begun["student"].items():
        assert torch.equal(value, student[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        ("mixture.fusion=fixed",),
        ("mixture.fusion=similarity",),
        ("mixture.fusion=learnable", "mixture.router=attention"),
    ],
)
@pytest.mark.long
def test_the_next_stage_may_weigh_otherwise(settings: tuple[str, ...], undisturbed: Path, tmp_path: Path) -> None:
    few = ("training.max_steps=2", "logging.eval_steps=2", f"training.start_from={undisturbed / LAST}")
    assert train(recipe_for(*settings, *few), tmp_path / "next", quiet=True).steps == 2
    before = [line for line in journal(undisturbed) if "eval_ce" in line][-1]
    assert first_validation(tmp_path / "next")["eval_ce"] == pytest.approx(before["eval_ce"], rel=0.2)


@pytest.mark.parametrize(
    ("settings", "teachers", "reason"),
    [
        ((), ("llama", "qwen2"), "was trained with the teachers llama, gpt2, this run has llama, qwen2"),
        ((), ("llama", "gpt2", "qwen2"), "this run has llama, gpt2, qwen2"),
        (
            ("mixture.space=z",),
            ("llama", "gpt2"),
            r"projector\.safetensors: source\.mixture\..* is missing, unexpected or of",
        ),
        (("mixture.share_adapters=true",), ("gpt2", "llama"), "this run has gpt2, llama"),
    ],
    ids=["another teacher", "one more", "codes", "another order"],
)
def test_adapters_of_others_are_refused(
    settings: tuple[str, ...], teachers: tuple[str, ...], reason: str, undisturbed: Path, tmp_path: Path
) -> None:
    start = f"training.start_from={undisturbed / LAST}"
    with pytest.raises(CheckpointError, match=reason):
        train(recipe_for(*settings, start, teachers=teachers), tmp_path / "next", quiet=True)


def test_a_start_that_is_no_student_is_refused(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a student's folder"):
        train(recipe_for(f"training.start_from={tmp_path / 'nowhere'}"), tmp_path / "next", quiet=True)
    bare = Path(shutil.copytree(undisturbed / LAST, tmp_path / "bare"))
    (bare / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"projector\.safetensors"):
        train(recipe_for(f"training.start_from={bare}"), tmp_path / "next2", quiet=True)


# -- the latent line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            ("mixture.fusion=learnable", "mixture.query=embedding", "mixture.entropy=diverse"), id="learnable"
        ),
        pytest.param((), id="fixed", marks=pytest.mark.long),
    ],
)
def test_latents_learn_from_foreign_teachers(settings: tuple[str, ...], tmp_path: Path) -> None:
    given = [one for one in many.settings("llama", "gpt2") if one not in many.CHAINS]
    few = (
        "training.max_steps=4",
        "logging.eval_steps=4",
        "evaluation.max_new_tokens=4",
        "projector.learning_rate=0.01",
    )
    recipe = load_recipe("embedded", [*given, *SHORT, *few, *settings])
    assert train(recipe, tmp_path / "run", quiet=True).steps == 4
    lines = [line for line in journal(tmp_path / "run") if "loss" in line]
    assert all(line["kv"] > 0 and "guard" in line for line in lines)
    start, end = (load_file(tmp_path / "run" / name / FILE) for name in ("checkpoint-step2", "best_checkpoint"))
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert any(".adapters." in name for name in moved)
    assert any(".router." in name for name in moved) == bool(settings)
    assert len(journal(tmp_path / "run", "routing.jsonl")) == 4


if __name__ == "__main__":
    print(json.dumps(measure_again(Path(sys.argv[1]))))
