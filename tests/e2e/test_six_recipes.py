"""The six recipes, offline, by the commands of the reproduction guide, hub names unchanged: train, evaluate, ask, reload.

Two of them run always (Llama with a bos token and equations, Qwen with sentences), the others with the long tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hub
from kava.cli.main import main
from kava.config import load_recipe
from kava.infer.student import Student

FAST = ("llama1b_aug", "qwen05b_aug_nl")
QUICK = "system.num_workers=0"  # loader processes cost seconds each and are tried elsewhere


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.build(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub.enter(root, monkeypatch)


def kava(line: str) -> None:
    assert main(line.split()) == 0, line


@pytest.mark.parametrize("recipe", [r if r in FAST else pytest.param(r, marks=pytest.mark.long) for r in hub.RECIPES])
def test_train_evaluate_ask_reload(here: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("outputs") / recipe / "seed_42"
    best = run / "best_checkpoint"
    kava(f"train --config {recipe} --output_dir {run} --seed 42 --quick_test {QUICK}")
    trained(run, recipe)

    kava(f"evaluate --checkpoint_dir {best} --eval_dataset gsm8k --output {run}/results_gsm8k.yaml")
    kava(f"evaluate --checkpoint {best} --dataset svamp --quick_test --max_new_tokens 6")
    for name in ("gsm8k", "svamp"):
        results = yaml.safe_load((run / f"results_{name}.yaml").read_text())
        assert (results["dataset"], results["total"], results["config"]) == (name, hub.TEST_ROWS, recipe)
    asked = [json.loads(line) for line in (run / "predictions_svamp.jsonl").read_text().splitlines()]

    capsys.readouterr()
    kava(
        f"infer --checkpoint {best} --config {recipe} --input_file {questions(here, asked)} --quiet --max_new_tokens 6"
    )
    answered = json.loads(capsys.readouterr().out)
    again = Student.from_pretrained(best).answer([item["question"] for item in asked], max_new_tokens=6)
    for item, row, answer in zip(asked, answered, again, strict=True):
        assert item["text"] == row["answer"] == answer.text
        assert item["forward_passes"] == row["forward_passes"] == answer.forward_passes


def trained(run: Path, recipe: str) -> None:
    """The run's folder, its stored recipe and the losses of every update."""
    named = ("recipe.yaml", "meta.json", "data_card.json", "train.log", "log.jsonl", "logs", "best_checkpoint")
    assert [name for name in named if not (run / name).exists()] == []
    stored, shipped = load_recipe(run / "recipe.yaml"), load_recipe(recipe)
    assert stored.model == shipped.model
    assert (stored.loss, stored.rkv, stored.latent, stored.lora) == (
        shipped.loss,
        shipped.rkv,
        shipped.latent,
        shipped.lora,
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    updates = [line for line in log if "loss" in line]
    assert [line["step"] for line in updates] == [1, 2, 3, 4]
    assert all(line[term] > 0 for line in updates for term in ("ce_student", "ce_teacher", "codi", "kv"))
    assert updates[-1]["loss"] < updates[0]["loss"]


def questions(root: Path, asked: list[dict]) -> Path:
    path = root / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": item["question"]}) + "\n" for item in asked))
    return path


def test_the_command_itself_in_a_new_process(here: Path) -> None:
    """Nothing of this process helps: the environment variables of the guide and the working folder are all there is."""
    best = hub.tiny_student(here / "own" / "best_checkpoint")
    words = [
        "evaluate",
        "--checkpoint",
        str(best),
        "--dataset",
        "gsm8k",
        "--quick_test",
        "--quiet",
        "--max_new_tokens",
        "6",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "kava", *words],
        cwd=here, env={**os.environ, **hub.environment(here)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (found,) = json.loads(done.stdout)
    items = [json.loads(line) for line in Path(found["predictions"]).read_text().splitlines()]
    here_again = Student.from_pretrained(best).answer([item["question"] for item in items], max_new_tokens=6)
    assert [item["text"] for item in items] == [answer.text for answer in here_again]


@pytest.mark.long
def test_a_lora_student_trains_and_answers_in_new_processes(here: Path) -> None:
    """kava train, then kava infer, each a process of its own, the base model found in HF_HOME."""
    run = here / "outputs" / "process"
    for words in (
        ["train", "--config", "qwen05b_aug", "--output_dir", str(run), "--seed", "42", "--quick_test"],
        ["infer", "--checkpoint", str(run / "best_checkpoint"), "--questions", "-3+4?", "--max_new_tokens", "4"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kava", *words],
            cwd=here, env={**os.environ, **hub.environment(here)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "Q: -3+4?" in done.stdout
