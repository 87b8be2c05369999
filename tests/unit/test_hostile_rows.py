"""Rows that no training should take silently: errors of that row by file, line and field; the rest counted and named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.data.fields import misspelt
from kava.data.load import load_file, load_rows
from kava.data.row_checks import other_result
from kava.errors import DataError

GOOD = {"question": "Start with 3. Add 4?", "steps": ["<<3+4=7>>"], "answer": "7"}
NESTED = '{"question": "a", "answer": "1", "steps": ' + "[" * 100_000 + "]" * 100_000 + "}"


def write(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (r'{"question": "a \ud800 b", "answer": "1"}', ["'question'", "U+D800"]),
        (r'{"question": "a", "answer": "\udfff1"}', ["'answer'", "U+DFFF"]),
        (r'{"question": "a", "answer": "1", "steps": ["ok", "\ud83d"]}', ["'steps[1]'", "U+D83D"]),
        (r'{"question": "a", "answer": "1", "steps": "1=\ud83d"}', ["'steps'", "U+D83D"]),
        (r'{"question": "a \u0000 b", "answer": "1"}', ["'question'", "NUL"]),
        (r'{"question": "a", "answer": "1", "steps": ["\u0000"]}', ["'steps[0]'", "NUL"]),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", ["too many digits"]),
        ('{"question": "a", "answer": ' + "9" * 4000 + "}", ["'answer'", "digits"]),
        ('{"question": "a", "answer": "' + "9" * 5000 + '"}', ["'answer'", "digits"]),
        ("[" * 100_000, ["too deep"]),
        (NESTED, ["too deep"]),
        ('{"question": "a", "question": "b", "answer": "1"}', ["'question'", "twice"]),
        ('{"question": "a", "answer": "1", "meta": {"x": 1, "x": 2}}', ["'x'", "twice"]),
        ({"question": "a", "prompt": "b", "answer": "1"}, ["'question'", "'prompt'", "differ"]),
        ({"question": "a", "answer": "1", "target": "2"}, ["'answer'", "'target'", "differ"]),
        ({**GOOD, "answer_text": 8}, ["'answer'", "'answer_text'", "differ"]),
        ({"question": "a", "answer": "1", "id": {"x": 1}}, ["'id'", "dict"]),
        ({"question": "a", "answer": "1", "id": [1]}, ["'id'", "list"]),
        ({"question": "a", "answer": "1", "stpes": ["1=1"]}, ["'steps'", "'stpes'"]),
        ({"question": "a", "answer": "1", "Steps": ["1=1"]}, ["'steps'", "'Steps'"]),
    ],
)
def test_a_hostile_row_is_an_error_of_that_row(tmp_path, capsys, row, words):
    path = write(tmp_path / "rows.jsonl", GOOD, row)
    with pytest.raises(DataError) as error:
        load_file(path)
    for word in (f"{path} line 2", *words):
        assert word in error.value.message
    assert main(["data", "check", str(path)]) == 2
    assert f"{path} line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a ", "prompt": "a", "answer": "1"},
        {"question": "a", "answer": "One and one. #### 2", "target": "2"},
        {"question": "a", "answer": 72, "answer_text": "72.0"},
        {"question": "a", "answer": "$1,234", "target": 1234},
        {"question": "a", "answer": "1", "prompt": None},
        {"question": "\U0001f600 \u4e2d\u6587 <eos>", "answer": "9" * 300, "id": 3},
    ],
)
def test_what_only_looks_odd_is_read(tmp_path, caplog, row):
    assert len(load_file(write(tmp_path / "rows.jsonl", row))) == 1
    assert not caplog.messages


def test_large_whole_numbers_keep_every_digit(tmp_path):
    number = 10**30 + 1
    assert load_rows([{"question": "a", "answer": number}], "rows")[0].answer == str(number)


ODD = {
    "the id of an earlier row": [{"id": "a"}, {"id": "b", "question": "x"}, {"id": "a", "question": "y"}],
    "another answer": [{}, {"question": "x"}, {"question": "start  with 3. add 4?", "answer": "8", "steps": []}],
    "the same answer": [{}, {"question": "x"}, {}],
    "steps that end in another number": [{}, {"question": "x"}, {"question": "y", "answer": "8"}],
    "a field 'stepss', which is not read; 'steps' is": [{}, {"question": "x"}, {"question": "y", "stepss": []}],
    "no steps, but a field 'CoT', which is not read": [
        {},
        {"question": "x"},
        {"question": "y", "steps": [], "CoT": "3+4=7"},
    ],
    "no steps, but a field 'lines', which is not read": [
        {"steps": [], "source": "a book", "tags": []},
        {"question": "x"},
        {"question": "y", "steps": [], "lines": ["3+4=7"]},
    ],
}


@pytest.mark.parametrize("what", list(ODD))
def test_odd_rows_are_counted_with_the_first_of_them(tmp_path, caplog, what):
    path = write(tmp_path / "rows.jsonl", *({**GOOD, **row} for row in ODD[what]))
    load_file(path)
    assert len(caplog.messages) == 1
    for word in (what, "1 of 3 rows", f"{path} line 3"):
        assert word in caplog.messages[0]


def test_training_and_data_check_report_them_once(tmp_path, caplog, capsys):
    rows = [{**GOOD, "question": f"{i}?"} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", *rows, {**rows[3], "answer": "8", "steps": []})
    assert main(["data", "check", str(path)]) == 0
    assert [m for m in caplog.messages if "another answer" in m] == [
        f"rows/train: 1 of 21 rows have the question of an earlier row and another answer (first: {path} line 21)"
    ]
    run = ["train", "--config", "debug", "--output_dir", str(tmp_path / "run"), f"dataset.name={path}"]
    assert main([*run, "training.max_steps=1", "dataset.streaming=true", "system.num_workers=0"]) == 0
    assert (tmp_path / "run" / "train.log").read_text(encoding="utf-8").count("another answer") == 1


def test_splits_that_share_questions_are_told_apart(tmp_path, caplog):
    rows = [{**GOOD, "question": f"{i}?"} for i in range(12)]
    folder = tmp_path / "leak"
    write(folder / "train.jsonl", *rows)
    write(folder / "validation.jsonl", {**GOOD, "question": "new?"}, *rows[10:])
    write(folder / "test.jsonl", *rows[:3], {**GOOD, "question": "new?"})
    assert main(["data", "check", str(folder)]) == 0
    shared = [message for message in caplog.messages if "are also in" in message]
    assert [m.partition(": ")[2] for m in shared] == [
        f"2 of 12 questions of train are also in validation (first: {folder}/train.jsonl line 11)",
        f"3 of 12 questions of train are also in test (first: {folder}/train.jsonl line 1)",
        f"1 of 3 questions of validation are also in test (first: {folder}/validation.jsonl line 1)",
    ]
    run = ["train", "--config", "debug", "--output_dir", str(tmp_path / "run"), f"dataset.name={folder}"]
    assert main([*run, "training.max_steps=1", "system.num_workers=0"]) == 0
    text = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "2 of 12 questions of train are also in validation" in text
    assert "3 of 12 questions of train are also in test" in text


@pytest.mark.parametrize(
    ("step", "answer", "cot_type", "result"),
    [
        ("<<3+4=7>>", "7", "equation", None),
        ("<<3+4=7>>", "8", "equation", "7"),
        ("<<3*4=$1,200.0>>", "1200", "equation", None),
        ("<<1/2=50%>>", "50", "equation", None),
        ("a=b", "8", "equation", None),  # nothing to compare
        ("x = 5", "yes", "equation", None),
        ("So 18 dollars for 2 days.", "18", "natural_language", None),
        ("So 18 dollars.", "19", "natural_language", "18"),
        ("So many dollars.", "19", "natural_language", None),
    ],
)
def test_where_steps_lead(step, answer, cot_type, result):
    assert other_result(["1=1", step], answer, cot_type) == result


def test_names_that_are_nearly_read():
    near = {"stpes": "steps", "step": "steps", "setps": "steps", "answr": "answer", "Questions": "question"}
    for name, meant in near.items():
        assert misspelt((name,)) == ((name, meant),)
    fine = (
        "question_id",
        "answer_type",
        "source",
        "id",
        "idx",
        "stem",
        "program",
        "level",
        "text",
        "question",
        "steps",
    )
    assert misspelt(fine) == ()


def test_shipped_sample_is_not_odd(caplog):
    caplog.set_level(logging.WARNING)
    load_file(Path(__file__).parents[2] / "data" / "sample_train.jsonl")
    assert not caplog.messages
