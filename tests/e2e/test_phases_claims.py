"""Phases 1 to 5 and the three stages, as a user starts them, with teachers of three families and tokenizers that know
the task: held-out keys and values end below where they began and below what the targets' mean would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import many
from kava.cli.main import main
from kava.config import load_recipe
from kava.infer.student import Student
from kava.training.run import train

pytestmark = pytest.mark.long
KINDS = ("llama", "gpt2", "qwen2")
SMALL = [
    "dataset.generator.train_size=8000", "dataset.generator.val_size=200", "training.batch_size=32",
    "training.learning_rate=3e-3", "system.num_workers=0",
]  # fmt: skip
OWN = [
    "--dataset_name", "chains", "--dataset_config", "None", "--gradient_accumulation_steps", "1",
    "--max_steps", "200", "--logging_steps", "50", "--eval_steps", "100",
    *SMALL, "dataset.cot_type=equation", "system.mixed_precision=no", "training.gradient_checkpointing=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small models of three families that have learnt chains, cross-entropy only."""
    found = {}
    for kind in KINDS:
        run = tmp_path_factory.mktemp(kind)
        given = [f"model.name={many.folder(kind)}", "loss.alpha2_kv=0", "training.max_steps=300", *SMALL]
        train(load_recipe("explicit_embedded", given), run / "run", None, quiet=True)
        found[kind] = str(run / "run" / "final_model" / "student")
    return found


def entries(teachers: dict[str, str], count: int) -> str:
    return "[" + ", ".join(f"{{name: {kind}, model: {teachers[kind]}}}" for kind in KINDS[:count]) + "]"


def words_of(phase: int, teachers: dict[str, str]) -> list[str]:
    first = ["--phase", str(phase), "--student_model", many.student_folder(), *OWN]
    if phase == 1:
        return [*first, "--teacher_models", teachers["llama"], "--teacher_prompts", "default", "cot"]
    if phase == 2:
        return [*first, f"mixture.teachers={entries(teachers, 2)}"]
    return [*first, "--lr_projector", "1e-2", f"mixture.teachers={entries(teachers, 3)}"]


def validations(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "eval_ce" in row]


@pytest.mark.parametrize("phase", [1, 2, 3, 4, 5])
def test_a_phase_teaches(phase: int, teachers: dict[str, str], tmp_path: Path) -> None:
    assert main(["distill", *words_of(phase, teachers), "--output_dir", str(tmp_path / "run"), "--quiet"]) == 0
    last = validations(tmp_path / "run")[-1]
    assert last["eval_kv"] < last["eval_kv_start"]
    assert last["eval_kv_unexplained"] < last["eval_kv_unexplained_start"]
    assert last["eval_kv"] < last["eval_kv_mean_predictor"]
    if phase >= 3:  # adapters and codes are trained: they have not shrunk to a point
        assert last["eval_target_variation"] > 0.3
        assert (tmp_path / "run" / "final_model" / "projector.safetensors").is_file()
    student = Student.from_pretrained(tmp_path / "run" / "best_checkpoint")
    assert student.answer(["3 + 4 ?"], mode="cot")[0].text


def test_three_stages_give_their_table(
    teachers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in words_of(3, teachers) if "=" in word]
    own = [f"model.name={many.student_folder()}", "dataset.name=chains", "dataset.config=null", "training.max_steps=60"]
    own += ["projector.learning_rate=1e-2", "dataset.generator.test_size=50", "training.gradient_accumulation_steps=1"]
    line = ["suite", "stages", "--config", "phase3", "--seeds", "1", "--datasets", "chains", "--quiet"]
    assert main([*line, "--output_dir", str(tmp_path), *words, *own]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table
    ends = [validations(tmp_path / "stages" / name / "seed_1")[-1] for name in ("fixed", "similarity", "learnable")]
    ce = [end["eval_ce"] for end in ends]
    assert ce[2] < ce[0]  # each begins where the one before ended
    began = validations(tmp_path / "stages" / "similarity" / "seed_1")[0]
    assert began["eval_kv_start"] < validations(tmp_path / "stages" / "fixed" / "seed_1")[0]["eval_kv_start"]
