"""What does not fit into the model: found before the first update, counted in validation and evaluation, named in a chat."""

from __future__ import annotations

import json

import pytest
import yaml

from hub import tiny_student
from kava import evaluate
from kava.cli.main import main
from kava.errors import ConfigError, DataError
from kava.infer.chat import Chat
from kava.infer.sampling import Sampling
from kava.infer.student import Student

LONG = "1+1+" * 400 + "1?"
ROW = {"question": "1+1?", "steps": ["<<1+1=2>>"], "answer": "2"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture
def student(checkpoint, monkeypatch):
    made = Student.from_pretrained(checkpoint)
    monkeypatch.setattr(type(made.model), "max_positions", 200)
    return made


def rows(folder, **splits):
    folder.mkdir()
    for name, questions in splits.items():
        lines = [json.dumps({**ROW, "question": question}) for question in questions]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def train(tmp_path, data, *settings, config="debug"):
    run = ["train", "--config", config, "--output_dir", str(tmp_path / "run"), f"dataset.name={data}"]
    return main([*run, "training.max_steps=1", "system.num_workers=0", *settings])


SHORT = [f"{i}+1?" for i in range(12)]


@pytest.mark.parametrize("config", ["debug", "explicit_embedded"])
def test_a_long_validation_question_is_counted_not_fatal(tmp_path, config):
    data = rows(tmp_path / "late", train=SHORT, validation=["1+1?", LONG, "2+2?"])
    assert train(tmp_path, data, config=config) == 0
    text = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "1 of 3 validation" in text
    assert "late/validation/1" in text


@pytest.mark.parametrize(
    ("questions", "settings"), [([LONG, LONG], []), (SHORT[:2], ["evaluation.max_new_tokens=100000000"])]
)
def test_where_no_validation_question_fits_nothing_is_trained(tmp_path, capsys, questions, settings):
    data = rows(tmp_path / "late", train=SHORT, validation=questions)
    assert train(tmp_path, data, *settings) == 2
    assert "none of 2 items fits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_long_training_row_is_named(tmp_path, capsys):
    data = rows(tmp_path / "late", train=[*SHORT, LONG], validation=SHORT[:1])
    assert train(tmp_path, data) == 2
    assert "the first is late/train/12" in capsys.readouterr().err


def test_evaluation_counts_it_as_not_answered(tmp_path, student, capsys):
    items = [{**ROW, "question": question} for question in ("1+1?", LONG, "2+2?")]
    result = evaluate(student, items, output=tmp_path / "out", losses=True)[0]
    assert (result.total, result.fields["too_long"]) == (3, 1)
    assert result.fields["losses_too_long"] == 1
    lines = [json.loads(line) for line in result.predictions.read_text(encoding="utf-8").splitlines()]
    assert [line.get("too_long", False) for line in lines] == [False, True, False]
    assert (lines[1]["correct"], lines[1]["value"], lines[1]["text"]) == (False, None, "")
    assert result.forward_passes == sum(line["forward_passes"] for line in lines) / 2
    assert main(["rescore", str(result.predictions)]) == 0
    assert yaml.safe_load(result.results.read_text(encoding="utf-8"))["too_long"] == 1
    ablated = evaluate(student, items, output=tmp_path / "swap", ablate="swap")[0]
    assert (ablated.total, ablated.fields["too_long"]) == (3, 1)
    for few in (items[:2], items[1:]):
        with pytest.raises(DataError, match="only 1 fits into the model"):
            evaluate(student, few, output=tmp_path / "few", ablate="swap")
    with pytest.raises(DataError, match="none of 1 items fits"):
        evaluate(student, items[1:2], output=tmp_path / "none")


def test_a_long_question_is_an_error_of_that_question(tmp_path, checkpoint, student, capsys, monkeypatch):
    with pytest.raises(DataError, match=r"^question 2: .* tokens and"):
        student.answer(["1+1?", LONG])
    written: list[str] = []
    chat = Chat(student, "latent", write=written.append)
    assert chat.line(LONG)
    assert chat.line("1+1?")
    assert written[0].startswith("error: question 1: ")
    assert "forward passes" in written[1]
    out = tmp_path / "answers.jsonl"
    words = ["infer", "--checkpoint", str(checkpoint), "--output_file", str(out)]
    assert main([*words, "--questions", "1+1?", LONG, "2+2?"]) == 2
    assert "question 2: " in capsys.readouterr().err
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]
    for name in ("answers.jsonl", "answers.txt", "answers.txt"):  # both may be replaced: kava wrote them
        words[-1] = str(tmp_path / name)
        assert main([*words, "--questions", LONG]) == 2
        assert "question 1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        ("3+4?", "not a list"),
        ([3], "question 1 is a int"),
        (["a", "\ud800"], "question 2 has half a character"),
        (["a\0b"], "question 1 has a NUL"),
        ([" "], "question 1 is empty"),
    ],
)
def test_what_is_no_question(student, questions, words):
    with pytest.raises(DataError, match=words):
        student.answer(questions)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": -1}, {"batch_size": 0}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}, {"sampling": 0.7}],
)
def test_what_is_no_option(student, options):
    with pytest.raises(ConfigError):
        student.answer(["1+1?"], **options)


@pytest.mark.parametrize("values", [(-1, 1), (0.7, 2.0), (0.7, 0), (float("nan"), 1), ("a", 1), (1, None), (True, 1)])
def test_what_is_no_sampling(values):
    with pytest.raises(ConfigError):
        Sampling(*values)


def test_bytes_on_the_command_line_that_are_no_text(checkpoint, capsys):
    assert main(["infer", "--checkpoint", str(checkpoint), "--questions", "\udcff\udcfe"]) == 2
    assert "is no text in utf-8" in capsys.readouterr().err
