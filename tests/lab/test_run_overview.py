"""kava show and kava runs: states, curves, broken runs, both lines, and speed."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from kava.cli.main import main
from kava.files import is_owned, sole_owner
from kava.lab.ascii_chart import chart

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FACTS = {"recipe": "debug", "seed": 3, "line": "latent", "model": "kava:embedded", "data": "chains"}


def make_run(folder: Path, lines: int = 4, **meta: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("about:\n  name: debug\nsystem:\n  seed: 3\n", encoding="utf-8")
    facts = {"run": FACTS, "total_steps": 10, "command": ["kava", "train", "--config", "debug"], **meta}
    (folder / "meta.json").write_text(json.dumps(facts), encoding="utf-8")
    entries = [{"step": n, "loss": 5.0 / n, "eval_accuracy": n / 10} for n in range(1, lines + 1)]
    if lines:
        (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    return folder


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_every_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", lines=0)
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", lines=10, finished=True, steps=10, best_accuracy=0.9)
    make_run(tmp_path / "d", finished=False, steps=4)
    make_run(tmp_path / "suite" / "member" / "seed_3")
    (tmp_path / "b" / "best_checkpoint").mkdir()
    (tmp_path / "b" / "best_checkpoint" / "recipe.yaml").write_text("about: {}", encoding="utf-8")
    with sole_owner(tmp_path / "b" / ".lock"):
        states = as_json(capsys, "runs", str(tmp_path))
    read = {Path(state["folder"]).relative_to(tmp_path).as_posix(): state for state in states}
    assert {name: state["state"] for name, state in read.items()} == {
        "a": "not started",
        "b": "running",
        "c": "finished",
        "d": "interrupted",
        "suite/member/seed_3": "interrupted",
    }
    assert not is_owned(tmp_path / "b" / ".lock")
    assert not is_owned(tmp_path / "a" / ".lock")
    c = read["c"]
    assert (c["step"], c["steps"], c["loss"], c["metric"], c["best"]) == (10, 10, 0.5, "accuracy", 0.9)
    assert read["b"]["best"] == 0.4  # of its log: not finished
    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "4/10" in table
    assert "90.0 %" in table


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("meta.json", "{", "meta.json"),
        ("meta.json", "[]", "meta.json: this is a list, a mapping is needed"),
        ("log.jsonl", "\x00\n", "log.jsonl, line 1: not JSON"),
        ("log.jsonl", "[1]\n", "log.jsonl: a line is no JSON object"),
        ("recipe.yaml", "a: [", "recipe.yaml"),
    ],
)
def test_a_broken_run_is_a_row_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, problem: str
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", run=None)
    (bad / file).write_text(text, encoding="utf-8")
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "broken" in out
    assert f"bad: {problem}" in out
    assert main(["show", str(bad)]) == 0
    assert f"problem: {problem}" in capsys.readouterr().out


def test_odd_values_are_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"data": [], "seconds": "long", "command": "kava train", "device": 3}
    run = make_run(tmp_path / "run", run="x", trained_parameters=3, all_parameters=[1], **odd)
    lines = [{"step": "three", "loss": 1.0}, {"step": 4, "loss": None}, {"step": 5, "loss": math.nan}, {"loss": "x"}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "results_chains.yaml").write_text("accuracy: x\n", encoding="utf-8")
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert "results_chains.yaml" in out
    assert json.loads(json.dumps(as_json(capsys, "show", str(run))))["state"] == "interrupted"


def test_show_both_lines_and_old_runs(capsys: pytest.CaptureFixture[str]) -> None:
    old = FIXTURES / "results" / "E1_baseline" / "seed_1"
    assert main(["show", str(old)]) == 0
    out = capsys.readouterr().out
    for words in ("finished", "debug, seed 1, latent line", "40 of 40", "best validation: 50.0 %", "chains (latent)"):
        assert words in out
    explicit = as_json(capsys, "show", str(FIXTURES / "mixture_checkpoint" / "best_checkpoint"))
    assert (explicit["line"], explicit["metric"], explicit["state"]) == ("explicit", "ce", "interrupted")
    assert explicit["held_out"]["kv"] > 0
    assert explicit["curves"]["loss"][0][0] == 1


def test_the_next_command_continues_in_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["/bin/kava", "train", "--config", "my run.yaml", "--output-dir=old", "--quiet", "--resume", "x", "a.b=1"]
    run = make_run(tmp_path / "run", command=command)
    (first,) = as_json(capsys, "show", str(run))["next"]
    assert first == f"kava train --config 'my run.yaml' a.b=1 --output_dir {run} --resume auto"
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out.replace(" \\\n   ", "")
    assert first in text


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "many" / "seed_3")
    for words, message in {
        ("show", str(tmp_path / "many")): "1 below it: kava runs",
        ("show", str(tmp_path / "none")): "does not exist",
        ("runs", str(tmp_path / "none")): "does not exist",
        ("show", str(FIXTURES / "latent_student")): "is no run's folder",
    }.items():
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "many" / "seed_3" / "..")]) == 0


def test_a_hundred_runs_take_less_than_half_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "seed_0")
    entries = [{"step": n, "loss": 1.0, **dict.fromkeys("abcdefgh", 0.123456789)} for n in range(2000)]
    for entry in entries[::50]:
        entry["eval_accuracy"] = 0.5
    (first / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    for seed in range(1, 100):
        shutil.copytree(first, tmp_path / f"seed_{seed}")
    main(["runs", str(FIXTURES)])  # imports
    began = time.process_time()
    assert main(["runs", str(tmp_path)]) == 0
    assert time.process_time() - began < 0.5
    assert capsys.readouterr().out.count("interrupted") >= 100


def test_a_chart() -> None:
    assert chart([]) == ""
    assert chart([(1, math.nan)]) == ""
    drawn = chart([(0, 0.0), (5, 5.0), (10, 10.0), (7, math.inf)], columns=11, rows=3)
    assert drawn.splitlines() == [
        "10 |          *",
        "   |     *",
        " 0 |*",
        "   +-----------",
        "    0        10",
        "1 value not finite, left out",
    ]
    assert "3 |" in chart([(1, 3.0), (2, 3.0)])
