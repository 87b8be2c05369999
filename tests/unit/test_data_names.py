"""Names of data sets that can be none, and what is told of a set that is read for several splits."""

import json

import pytest

from kava.config import DatasetConfig, load_recipe
from kava.data.load import load_examples
from kava.data.places import open_set
from kava.errors import DataError
from kava.evaluation.eval_sets import load_eval_set


@pytest.mark.parametrize(
    "name", ["", " ", "/dev/null", "x" * 5000, "x" * 252, "x" * 5000 + ".jsonl", "a\0b", "~nobody-here/x", "\udcff"]
)
def test_what_can_be_no_name_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for read in (lambda: open_set(name), lambda: load_eval_set(load_recipe("debug"), name)):
        with pytest.raises(DataError) as caught:
            read()
        assert len(str(caught.value)) < 2000
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("streaming", [False, True])
def test_too_few_validation_questions_are_told_once(tmp_path, caplog, streaming):
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"{i}+1?", "steps": [f"<<{i}+1={i + 1}>>"], "answer": str(i + 1)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = DatasetConfig(name=str(path), streaming=streaming)
    for split in ("train", "validation"):
        assert list(load_examples(dataset, split))
    assert caplog.text.count("validation examples are held out") == 1


def test_a_name_with_a_line_break_is_one_line() -> None:
    with pytest.raises(DataError) as error:
        open_set("a\nb")
    assert "\n" not in error.value.message
