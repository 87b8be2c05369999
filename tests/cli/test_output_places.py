"""Every verb that writes: an impossible place is one line and exit code 2 before any work; nothing of the user's is replaced."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests import report_runs

from kava.cli.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERBS = {  # BAD is a place that cannot be written
    "format": ["format", "--input_dir", "runs", "--output_latex", "BAD"],
    "format csv": ["format", "--input_dir", "runs", "--csv_only", "--output_csv", "BAD"],
    "analyze": ["analyze", "--output_base", "runs", "--save_json", "BAD"],
    "aggregate": ["aggregate", "--seed_dirs", "runs/steps/seed_1", "--output_yaml", "BAD"],
    "config": ["config", "--export", "BAD"],
    "seeds": ["seeds", "--config", "debug", "--output_dir", "BAD"],
    "suite": ["suite", "e1-e5", "--config", "debug", "--output_dir", "BAD"],
    "suite settings": ["suite", "e1-e5", "--config", "debug", "--output_dir", "BAD", "training.max_steps=2"],
    "demo": ["demo", "--output_dir", "BAD"],
    "submit": ["submit", "train", "--config", "debug", "--output_dir", "BAD", "--scheduler", "local"],
    "submit log": ["submit", "train", "--config", "debug", "--log", "BAD/kava", "--scheduler", "local"],
    "task": ["task", "--status", "BAD", "--", "true"],
    "infer": ["infer", "--checkpoint", "student", "--questions", "1+1?", "--output_file", "BAD"],
    "export": ["export", "student", "BAD"],
    "export embeds": ["export", "student", "--embeds", "BAD", "--questions", "1+1?"],
    "report": ["report", "runs", "--output", "BAD.html", "--figures", "BAD"],
    "rescore": ["rescore", "predictions_s.jsonl", "--output_dir", "BAD"],
    "train": ["train", "--config", "debug", "--output_dir", "BAD"],
    "distill": ["distill", "--config", "explicit_embedded", "--output_dir", "BAD"],
    "extract": ["extract", "--config", "explicit_embedded", "--output_dir", "BAD"],
    "evaluate": ["evaluate", "--checkpoint", "student", "--output", "BAD/results.yaml"],
    "selection": ["selection", "--checkpoint", "student", "--output", "BAD.json"],
    "lens": ["lens", "student", "--questions", "1+1?", "--output", "BAD.json"],
    "bench": ["bench", "latent", "--checkpoint", "student", "--output", "BAD.json"],
    "align": ["align", "precompute", "--student_model", "x", "--teacher_model", "y", "--dataset_name", "chains",
              "--output", "BAD"],
    "assets": ["assets", "fetch", "--dataset", "chains", "--cache_dir", "BAD"],
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs, their aggregate and a student."""
    monkeypatch.chdir(tmp_path)
    for seed in report_runs.SEEDS[:2]:
        report_runs.answer(report_runs.run(tmp_path / "runs", "steps", seed), "chains", 30 + seed)
    (tmp_path / "student").symlink_to(FIXTURES / "latent_student", target_is_directory=True)
    (tmp_path / "file").write_text("mine\n")
    fields = {"total": 1, "accuracy": 1.0, "cue": "given", "dataset": "s", "mode": "latent"}
    answer = {"gold": "1", "text": "1", "num_steps": 1, "forward_passes": 1, "executed_calls": 1, "generated_tokens": 1,
              "truncated": False}  # fmt: skip
    (tmp_path / "results_s.json").write_text(json.dumps(fields))
    (tmp_path / "predictions_s.jsonl").write_text(json.dumps(answer) + "\n")
    aggregated = ["aggregate", "--seed_dirs", "runs/steps/seed_1", "runs/steps/seed_2", "--quiet"]
    assert main([*aggregated, "--output_json", "runs/aggregated_results.json"]) == 0
    return tmp_path


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content, links as what they point to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text(errors="replace")
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_an_impossible_place_is_one_line_before_any_work(here, capsys, verb: str):
    bad = ["file/below", "n" * 300]
    if sys.platform == "linux":
        bad.append("/proc/kava")
    before = tree(here)
    capsys.readouterr()
    for place in bad:
        code = main([word.replace("BAD", place) for word in VERBS[verb]])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors), out) == (2, 1, ""), (place, out, err)
        assert "cannot be written: " in errors[0] or (verb == "task" and "is not visible" in errors[0]), errors
    assert tree(here) == before


OUTPUTS = {
    "latex": ["format", "--input_dir", "runs", "--latex_only", "--output_latex"],
    "csv": ["format", "--input_dir", "runs", "--csv_only", "--output_csv"],
    "json": ["aggregate", "--seed_dirs", "runs/steps/seed_1", "--output_json"],
    "yaml": ["aggregate", "--seed_dirs", "runs/steps/seed_1", "--output_yaml"],
    "analysis": ["analyze", "--output_base", "runs", "--experiments", "steps", "--save_json"],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_file_of_the_users_stays_unless_told(here, capsys, kind: str):
    words = OUTPUTS[kind]
    assert main([*words, "file"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (here / "file").read_text() == "mine\n"
    assert main([*words, "file", "--overwrite"]) == 0
    assert (here / "file").read_text() != "mine\n"
    assert main([*words, "file"]) == 0, "what kava wrote may be replaced by kava"
    assert main([*words, "/dev/null" if sys.platform != "win32" else "nul"]) == 0


def test_an_edited_table_stays(here, capsys):
    words = ["format", "--input_dir", "runs"]
    assert main(words) == main(words) == 0
    table = here / "paper_tables.tex"
    table.write_text(table.read_text().replace("Test accuracy", "My accuracy"))
    assert main(words) == 2
    assert "it was changed since" in capsys.readouterr().err
    assert "My accuracy" in table.read_text()


def test_an_output_over_an_input_or_another_output(here, capsys):
    results = "runs/steps/seed_1/results_chains.yaml"
    before = tree(here)
    seed = ["aggregate", "--seed_dirs", "runs/steps/seed_1", "--overwrite"]
    for words, said in (
        ([*seed, "--output_yaml", results], "is an input"),
        ([*seed, "--output_json", "runs/../" + results], "is an input"),
        ([*seed, "--output_json", "x", "--output_yaml", "x"], "--output_json and --output_yaml would be written to x"),
        (["format", "--input_dir", "runs", "--output_latex", "x", "--output_csv", "./x"], "would be written to"),
        (["format", "--input_dir", "runs", "--output_csv", "runs/aggregated_results.json", "--overwrite"], "an input"),
        (["analyze", "--output_base", "runs", "--save_json", results, "--overwrite"], "is an input"),
        (
            ["infer", "--checkpoint", "student", "--input_file", "file", "--output_file", "./file", "--overwrite"],
            "input",
        ),
        (["report", "runs", "--output", "x.html", "--figures", "x.html"], "would be written to"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err, words
    assert tree(here) == before


def test_exported_recipes_replace_no_other_recipe(here, capsys):
    words = ["config", "--get", "debug", "--export", "recipes"]
    assert main(words) == main(words) == 0
    path = here / "recipes" / "debug.yaml"
    whole = path.read_text()
    path.write_text("notes\n")
    assert main(words) == 2
    assert path.read_text() == "notes\n"
    assert main([*words, "--overwrite"]) == 0
    assert path.read_text() == whole


@pytest.mark.parametrize("flag", ["--output_dir=", "--output-dir"])
def test_an_empty_path_is_not_the_working_folder(here, capsys, flag: str):
    words = [flag] if flag.endswith("=") else [flag, ""]
    for verb in (["train", "--config", "debug"], ["seeds", "--config", "debug"], ["demo"], ["distill"]):
        assert main([*verb, *words]) == 2
        assert "--output_dir is empty" in capsys.readouterr().err


def test_a_student_that_is_not_there_is_not_submitted(here, capsys):
    before = tree(here)
    words = ["submit", "evaluate", "--checkpoint", "nope", "--scheduler", "local"]
    assert main(words) == 2
    assert "checkpoint nope does not exist" in capsys.readouterr().err
    assert main([*words, "--after", "1", "--dry_run"]) == 0  # that job may make it
    assert tree(here) == before
    assert not (here / "nope").exists()


def test_a_log_of_somebody_else_is_not_appended_to(here, capsys):
    shutil.rmtree(here / "runs")
    (here / "run").mkdir()
    (here / "run" / "train.log").symlink_to(here / "file")
    assert main(["train", "--config", "debug", "--output_dir", "run"]) == 2
    assert "train.log exists, and kava did not write it" in capsys.readouterr().err
    assert (here / "file").read_text() == "mine\n"
