"""kava rescore: saved answers judged again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

import hub
from kava.cli.main import main
from kava.data.example import Example
from kava.evaluation.result_files import Files, write
from kava.evaluation.score import judge, summary
from kava.infer.student import Answer

TEXTS = ("5", "-3", "1,234.", "about 7", "8 and 9", "nothing", "<<1+1=2>> The answer is: 2", "$5.00\n", "50 %")
GOLD = ("5", "-3", "1234", "7", "9", "4", "2", "5", "50")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What kava evaluate has just written, in every mode, as YAML and as JSON."""
    folder = tmp_path_factory.mktemp("fresh")
    student = hub.tiny_student(folder / "best_checkpoint")
    words = ["evaluate", "--checkpoint", str(student), "--max_new_tokens", "6", "--quiet"]
    for mode in ("latent", "cot", "direct"):
        assert main([*words, "--mode", mode]) == 0
    assert main([*words, "--output", str(folder / "mine.json")]) == 0
    return folder


def saved(folder, cue="given", name="s", **changes):
    """An evaluation with known answers; `changes` go into every line of its predictions, None takes a field out."""
    items = [
        judge(Example(f"s/{i}", f"q{i}?", ("a=b",), gold), Answer(text, None, 5 + i, False, 4 + i, 2), "latent", cue)
        for i, (text, gold) in enumerate(zip(TEXTS, GOLD, strict=True))
    ]
    results = {"dataset": name, "cue": cue, **summary(items), "wall_time_s": 1.5, "seed": 7}
    files = Files(folder / f"results_{name}.yaml", folder / f"predictions_{name}.jsonl")
    write(files, results, [{k: v for k, v in (item | changes).items() if v is not None} for item in items])
    return files


def rescore(*words):
    return main(["rescore", *map(str, words)])


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_fresh_files_stay_as_they_are(fresh, tmp_path, capsys):
    predictions = sorted(fresh.glob("predictions_*.jsonl"))
    assert len(predictions) == 4
    before = {path: path.read_bytes() for path in fresh.iterdir() if path.is_file()}
    assert rescore(*predictions, "--output_dir", tmp_path / "again") == 0
    assert capsys.readouterr().out.count("(0 of 16 items judged otherwise)") == 4
    assert {path: path.read_bytes() for path in before} == before
    for path in before:
        again = tmp_path / "again" / path.name
        if path.suffix == ".jsonl":
            assert again.read_bytes() == before[path]
        else:
            assert read(again) == read(path) | {"rescored": True}  # YAML reads JSON, too
            assert list(read(again)) == [*read(path), "rescored"]


def test_old_verdicts_are_made_again(tmp_path, capsys):
    """An earlier reader of answers had found nothing right."""
    right = [True, True, True, False, False, False, True, True, True]
    files = saved(tmp_path, correct=False, correct_flexible=False, value="0", strict_value=None)
    results = read(files.results) | {"accuracy": 0.0, "correct": 0}
    files.results.write_text(yaml.safe_dump(results, sort_keys=False))
    assert rescore(files.predictions) == 0
    assert "0.0 % -> 66.7 % correct (6 of 9 items judged otherwise)" in capsys.readouterr().out
    assert [json.loads(line)["correct"] for line in files.predictions.read_text().splitlines()] == right
    new = read(files.results)
    assert (new["correct"], new["accuracy"], new["rescored"]) == (6, 6 / 9, True)
    assert (new["flexible_accuracy"], new["no_answer"]) == (7 / 9, 1 / 9)
    assert (new["seed"], new["wall_time_s"], new["dataset"]) == (7, 1.5, "s")
    assert new["by_steps"] == {1: {"correct": 6, "total": 9}}


def test_the_cue_decides(tmp_path):
    """Where the model had to write the cue, a bare number is no marked answer."""
    files = saved(tmp_path, cue="generated")
    assert rescore(files.predictions, "--quiet") == 0
    found = [json.loads(line)["correct"] for line in files.predictions.read_text().splitlines()]
    assert found == [False, False, False, False, False, False, True, False, False]


def test_several_files_or_none(tmp_path, capsys):
    good, bad = saved(tmp_path), saved(tmp_path, name="t", text=None)
    before = good.results.read_bytes()
    assert rescore(good.predictions, bad.predictions) == 2
    assert good.results.read_bytes() == before
    other = saved(tmp_path / "other")
    assert rescore(good.predictions, other.predictions, "--output_dir", tmp_path / "o") == 2
    assert "two results" in capsys.readouterr().err
    assert rescore(good.predictions, good.predictions, "--quiet") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def bad_inputs(folder):
    torn, without, short = saved(folder, name="torn"), saved(folder, name="without"), saved(folder, name="short")
    whole = torn.predictions.read_text()
    torn.predictions.write_text(whole[:-40])
    without.results.unlink()
    short.predictions.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    yield torn.predictions, "line 9 is not valid JSON"
    yield without.predictions, "no results_without.yaml beside it"
    yield short.predictions, "has 8 lines, results_short.yaml counts 9 items"
    for field in ("text", "gold", "forward_passes", "truncated", "num_steps"):
        yield saved(folder, name=f"no_{field}", **{field: None}).predictions, f"line 1: {field} is missing"
    yield saved(folder, name="kind", text=5).predictions, "line 1: text: 5 is a number, text is needed"
    yield (
        saved(folder, name="flag", executed_calls=True).predictions,
        "executed_calls: True is true or false, a whole number is needed",
    )
    for field in ("cue", "total", "accuracy"):
        files = saved(folder, name=f"r_{field}")
        files.results.write_text(yaml.safe_dump({k: v for k, v in read(files.results).items() if k != field}))
        yield files.predictions, f"results_r_{field}.yaml: {field} is missing"
    garbled, two = saved(folder, name="garbled"), saved(folder, name="two")
    garbled.results.write_text("a: [1\n")
    two.results.with_suffix(".json").write_text(json.dumps(read(two.results)))
    yield garbled.predictions, "results_garbled.yaml"
    yield two.predictions, "may belong to results_two.yaml or to results_two.json"
    yield two.results, "is no predictions"
    yield folder, "is no predictions"
    yield folder / "none.jsonl", "does not exist"


def test_each_mistake_is_one_line_and_writes_nothing(tmp_path, capsys):
    for path, said in bad_inputs(tmp_path):
        before = {one: one.read_bytes() for one in tmp_path.iterdir()}
        assert rescore(path) == 2, path
        out, err = capsys.readouterr()
        assert said in err, (said, err)
        assert len(err.splitlines()) <= 2
        assert not out
        assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_rescoring_needs_no_model():
    code = "import sys, kava.evaluation.rescore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
