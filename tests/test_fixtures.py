"""Files that an earlier revision wrote (fixtures/README.md) still load, continue and say the same."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kava import Student
from kava.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"
QUESTIONS = ["3+4*2-1?", "2*2?"]
TOLERANCE = 1e-4  # everything is float32
PARTS = ("name", "status", "terms", "accuracy_mean", "accuracy_std", "forward_passes", "per_seed", "losses")
CLOCK = ("runtime", "per_second", "seconds")

Json = Any


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of every fixture in the current folder: recipes name their models by relative paths."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Json:
    """What a verb prints with --quiet."""
    capsys.readouterr()
    assert main([*words, "--quiet"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def last_update(run: str) -> dict[str, float]:
    """The loss and its terms in the last line of the log that is about training."""
    lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    line = [line for line in lines if "loss" in line][-1]
    return {name: value for name, value in line.items() if not any(word in name for word in CLOCK)}


def weights(folder: Path) -> list[list[float]]:
    """Size and norm of every saved tensor, whatever its name and file."""
    files = sorted(folder.glob("*.safetensors"))
    assert files
    tensors = [tensor for path in files for tensor in load_file(path).values()]
    return sorted([tensor.numel(), float(tensor.double().norm())] for tensor in tensors)


def end_of(run: str) -> dict[str, Json]:
    return {"update": last_update(run), "weights": weights(Path(run) / "checkpoint-ep1")}


def latent_student(capsys: pytest.CaptureFixture[str]) -> Json:
    student = Student.from_pretrained("latent_student", device="cpu")
    answers = [
        {"text": answer.text, "value": answer.value, "passes": answer.forward_passes, "tokens": answer.num_tokens}
        for answer in student.answer(QUESTIONS)
    ]
    thoughts = student.think(QUESTIONS).double()
    words = ("--checkpoint", "latent_student", "--losses", "--device", "cpu", "--output", "measured")
    results = said(capsys, "evaluate", *words)
    result = results[0] if isinstance(results, list) else results
    return {
        "answers": answers,
        "thoughts": [[float(latent.norm()), *latent[:2].tolist()] for latent in thoughts.flatten(0, 1)],
        "losses": result["losses"],
        "total": result["total"],
    }


def resumed(verb: str, run: str, checkpoint: str) -> Callable[[pytest.CaptureFixture[str]], Json]:
    """Continues a stopped run to its fourth update."""

    def measure(capsys: pytest.CaptureFixture[str]) -> Json:
        before = (Path(run) / "log.jsonl").read_text().splitlines()
        words = ("--config", f"{run}/recipe.yaml", "--output_dir", run, "--resume", checkpoint)
        assert said(capsys, verb, *words)["steps"] == 4
        after = (Path(run) / "log.jsonl").read_text().splitlines()
        assert after[: len(before) - 1] == before[:-1]  # with the clock of that time: it did not begin again
        return end_of(run)

    return measure


def without_dropout(measure: Callable[[pytest.CaptureFixture[str]], Json], run: str) -> Callable[..., Json]:
    """LoRA's dropout is 0 in the recipes of the run: what is dropped depends on the columns of a pass."""

    def changed(capsys: pytest.CaptureFixture[str]) -> Json:
        for recipe in Path(run).rglob("recipe.yaml"):
            text = recipe.read_text(encoding="utf-8")
            assert text.count("  alpha: 32.0\n  dropout: 0.1\n") == 1
            recipe.write_text(
                text.replace("  alpha: 32.0\n  dropout: 0.1\n", "  alpha: 32.0\n  dropout: 0.0\n"), encoding="utf-8"
            )
        return measure(capsys)

    return changed


def teacher_store(capsys: pytest.CaptureFixture[str]) -> Json:
    """Every hash is right, and one update reads it instead of the teacher."""
    verified = said(capsys, "extract", "--verify", "--output_dir", "teacher_store")
    assert not verified["problems"]
    for weights_file in Path("teacher").glob("*.safetensors"):
        weights_file.unlink()
    words = ("--config", "emergency_checkpoint/recipe.yaml", "--output_dir", "run", "--teacher_store", "teacher_store")
    said(capsys, "distill", *words, "training.max_steps=1", "training.lr_scheduler=constant")
    return last_update("run")


def mixture_start(capsys: pytest.CaptureFixture[str]) -> Json:
    """Another run starts from its student and from what the mixture has learnt."""
    words = ("--config", "mixture_checkpoint/recipe.yaml", "--output_dir", "run", "training.max_steps=1")
    said(capsys, "distill", *words, "training.start_from=mixture_checkpoint/best_checkpoint")
    return last_update("run")


def results(capsys: pytest.CaptureFixture[str]) -> Json:
    pytest.importorskip("scipy")  # no part of the oldest environment
    runs = [f"results/E4_rkv/seed_{seed}" for seed in (1, 2)]
    aggregated = said(capsys, "aggregate", "--seed_dirs", *runs, "--config_name", "E4_rkv")["E4_rkv"]
    said(capsys, "format", "--input_dir", "results", "--output_latex", "tables.tex", "--output_csv", "table.csv")
    analysis = said(capsys, "analyze", "--output_base", "results")
    table = Path("table.csv").read_text(encoding="utf-8").splitlines()
    return {
        "aggregated": aggregated["datasets"],
        "accuracies": sorted(float(row["Accuracy_Mean"]) for row in csv.DictReader(table)),
        "analysis": {name: analysis[name] for name in ("dataset", "items", "seeds", "budget")},
        "experiments": [{name: part[name] for name in PARTS} for part in analysis["experiments"]],
        "claims": [[claim["name"], claim["word"]] for claim in analysis["claims"]],
    }


def report(capsys: pytest.CaptureFixture[str]) -> Json:
    """One page about all four runs, with the accuracies of the result files."""
    said(capsys, "report", "results", "--output", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    return {word: word in page for word in ("E1_baseline", "E4_rkv", "35.4", "20.8", "inconclusive")}


FAST: dict[str, Callable[[pytest.CaptureFixture[str]], Json]] = {
    "latent_student": latent_student,
    "latent_checkpoint": without_dropout(resumed("train", "latent_checkpoint", "auto"), "latent_checkpoint"),
    "emergency_checkpoint": resumed("distill", "emergency_checkpoint", "emergency_checkpoint/emergency_checkpoint"),
    "teacher_store": teacher_store,
    "mixture_checkpoint": resumed("distill", "mixture_checkpoint", "auto"),
    "mixture_start": mixture_start,
    "results": results,
}
LONG = {"report": report}


def assert_close(value: Json, wanted: Json, where: str) -> None:
    """Numbers nearly equal, everything else equal; what the new value holds beyond the stored one is not looked at."""
    if isinstance(wanted, dict):
        for name, part in wanted.items():
            assert name in value, f"{where}.{name} is missing"
            assert_close(value[name], part, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(value) == len(wanted), where
        for number, part in enumerate(wanted):
            assert_close(value[number], part, f"{where}[{number}]")
    elif isinstance(wanted, float):
        assert math.isclose(value, wanted, rel_tol=TOLERANCE, abs_tol=1e-6), f"{where}: {value}, not {wanted}"
    else:
        assert value == wanted, f"{where}: {value}, not {wanted}"


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_what_an_earlier_revision_wrote_still_works(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((place / "expected.json").read_text(encoding="utf-8"))
    assert_close((FAST | LONG)[name](capsys), expected[name], name)
