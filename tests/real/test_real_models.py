"""Two pretrained models of one family, under the recipes' own settings: what tiny random models cannot show.

`make test-real` runs this file; KAVA_REAL_MODELS names a folder that holds two checkpoints with one tokenizer, for example
Qwen2.5-0.5B-Instruct and Qwen2.5-1.5B-Instruct. The smaller one is the student. They stand under the names of the recipes
`qwen05b_aug` and `adaptive` in a folder of links, KAVA_MODEL_PATH; the hub's address leads nowhere.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROWS = Path(__file__).parent / "gsm8k"
STUDENT, TEACHER = "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct"
MODELS = os.environ.get("KAVA_REAL_MODELS")
LATENT = ("train", "--config", "qwen05b_aug", "dataset.name=datasets/gsm8k", "training.max_steps=3",
          "training.batch_size=8", "training.gradient_accumulation_steps=1", "logging.logging_steps=1",
          "logging.eval_steps=3", "evaluation.max_new_tokens=16")  # fmt: skip
SECONDS = 600

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(MODELS is None, reason="KAVA_REAL_MODELS names no folder with two pretrained models"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with GSM8K rows under datasets/ and both models under the recipes' names."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(ROWS, folder / "datasets" / "gsm8k")
    models = sorted(Path(MODELS or "").expanduser().glob("*/model.safetensors"), key=lambda file: file.stat().st_size)
    assert len(models) == 2, f"{MODELS} must hold two models of one safetensors file each, it holds {len(models)}"
    (folder / "models").mkdir()
    for name, weights in zip((STUDENT, TEACHER), models, strict=True):
        (folder / "models" / name).symlink_to(weights.parent.resolve())
    yield folder
    shutil.rmtree(folder)  # gigabytes of weights


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A latent run of three updates with the recipe's four workers: stopped by SIGTERM to its group in the second."""
    run = start(place, *LATENT, "--output_dir", "stopped")
    for line in run.stdout or ():
        if line.startswith("step 1/"):
            os.killpg(run.pid, signal.SIGTERM)
            break
    rest = run.communicate(timeout=SECONDS)[0]
    assert run.returncode == 128 + signal.SIGTERM, rest
    assert "Traceback" not in rest
    assert list((place / "stopped").glob("checkpoint-step*")), rest
    kava(place, *LATENT, "--output_dir", "stopped", "--resume", "auto")
    return place / "stopped" / "best_checkpoint"


def start(place: Path, *words: str) -> "subprocess.Popen[str]":
    """`kava WORDS` in a process group of its own, with as many threads as the machine has; one stream."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "HF_HUB_OFF"))},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "KAVA_MODEL_PATH": str(place / "models"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "kava", *words]
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kava(place: Path, *words: str) -> str:
    """What `kava WORDS` prints; it must succeed."""
    run = start(place, *words)
    printed = run.communicate(timeout=SECONDS)[0]
    assert run.returncode == 0, printed
    return printed


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[Any]:
    return [record["loss"] for record in records(run / "log.jsonl") if "loss" in record]


def test_every_check_of_the_model_passes(place: Path) -> None:
    assert "supported" in kava(place, "model", "check", f"Qwen/{STUDENT}", "--full")


def test_a_stopped_run_ends_as_an_undisturbed_one(place: Path, trained: Path) -> None:
    kava(place, *LATENT, "--output_dir", "whole")
    assert losses(trained.parent) == losses(place / "whole")
    assert (trained / "trained.safetensors").read_bytes() == (
        place / "whole" / "best_checkpoint" / "trained.safetensors"
    ).read_bytes()
    shutil.rmtree(place / "whole")


@pytest.mark.parametrize("mode", ["latent", "cot"])
def test_questions_of_gsm8k_are_answered_and_counted(mode: str, place: Path, trained: Path) -> None:
    words = (
        "--dataset",
        "gsm8k",
        "--limit",
        "8",
        "--mode",
        mode,
        "--max_new_tokens",
        "96",
        "--output",
        f"results_{mode}",
    )
    kava(place, "evaluate", "--checkpoint", str(trained), *words)
    (results,) = (yaml.safe_load(file.read_text()) for file in (place / f"results_{mode}").glob("results_*.yaml"))
    assert results["total"] == 8
    (predictions,) = (place / f"results_{mode}").glob("predictions_*.jsonl")
    assert len(records(predictions)) == 8


def test_a_new_process_and_another_batch_size_give_the_same_answers(place: Path, trained: Path) -> None:
    questions = [row["question"] for row in records(ROWS / "test.jsonl")]
    (place / "questions.txt").write_text("\n".join(question.replace("\n", " ") for question in questions))
    script = (
        "import json, sys; from kava import Student; import torch\n"
        "student = Student.from_pretrained(sys.argv[1]); student.model.float()\n"
        "questions = open('questions.txt').read().splitlines()\n"
        "print(json.dumps([[a.text for a in student.answer(questions, batch_size=int(n), max_new_tokens=24)]"
        " for n in sys.argv[2:]]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KAVA_MODEL_PATH": str(place / "models")}
    answers = []
    for sizes in (("1", "8"), ("8",)):
        command = [sys.executable, "-c", script, str(trained), *sizes]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        answers += json.loads(done.stdout.splitlines()[-1])
    assert answers[0] == answers[1] == answers[2]
    printed = kava(place, "infer", "--checkpoint", str(trained), "--questions", questions[0])
    assert printed.count("\nA:") + printed.startswith("A:") == 1


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_a_larger_model_teaches(quantization: str, place: Path) -> None:
    if quantization == "4bit" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    kava(place, "env")
    words = ("--config", "adaptive", "--batch_size", "8", "--gradient_accumulation_steps", "1", "--max_steps", "1",
             f"teacher.quantization={quantization}", "dataset.name=gsm8k", "evaluation.max_new_tokens=16",
             "logging.logging_steps=1")  # fmt: skip
    kava(place, "distill", *words, "--output_dir", f"taught_{quantization}")
    assert len(losses(place / f"taught_{quantization}")) == 1


def test_a_store_of_the_teacher_replaces_it(place: Path) -> None:
    subset = ("dataset.name=gsm8k", "dataset.subset_size=16", "dataset.val_size=2")
    kava(place, "extract", "--config", "adaptive", *subset, "--output_dir", "store")
    kava(place, "extract", "--output_dir", "store", "--verify")
    kava(place, "distill", "--config", "adaptive", *subset, "teacher.store=store", "--batch_size", "8",
         "--gradient_accumulation_steps", "1", "--max_steps", "1", "evaluation.max_new_tokens=16",
         "logging.logging_steps=1", "--output_dir", "from_store")  # fmt: skip
    assert len(losses(place / "from_store")) == 1


def test_tokens_of_two_vocabularies_are_aligned_in_chinese_and_emoji(place: Path) -> None:
    text = "\u5c0f\u660e\u6709 12 \u4e2a\u82f9\u679c \U0001f34e\U0001f469\u200d\U0001f680, 3+4=7"
    printed = kava(place, "align", "show", "--student_model", f"Qwen/{STUDENT}", "--teacher_model", "kava:embedded",
                   "--text", text, "--quiet")  # fmt: skip
    result = json.loads(printed)
    assert result
