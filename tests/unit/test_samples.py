"""Several answers to a question: seeded draws, pass@k, majority vote, likeliest of n; the files that hold them."""

from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch
import yaml

import hub
from kava.cli.main import main
from kava.data.example import Example
from kava.errors import ConfigError
from kava.evaluation.run import evaluate
from kava.evaluation.samples import combined, likeliest, pass_at_k, sampled_summary, vote
from kava.evaluation.score import predict
from kava.infer.sampling import Sampling
from kava.infer.student import Student
from kava.lab.analysis.runs import find_runs, read_result
from kava.lab.analysis.study import plain, split_part

WARM = Sampling(1.5, seed=3)
QUESTIONS = ["3+4?", "3+4*2-1?", "9-2?", "1+1+1+1?", "3+4?", "5*2?"]
SETTINGS = ["--num_steps", "2", "--limit", "5", "--max_new_tokens", "4", "--samples", "4", "--temperature", "1.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def student(folder):
    return Student.from_pretrained(folder)


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                drawn = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(
    ("values", "place", "votes"),
    [
        (["5", "7", "7.0"], 1, 2),  # the same number
        (["5", "7", "7", "5"], 0, 2),  # of equally many the first
        ([None, None, "3"], 2, 1),  # no number, no vote
        ([None, None], 0, 0),
        (["1,000", "1000", "2"], 0, 2),
    ],
)
def test_vote(values, place, votes):
    assert vote(values) == (place, votes)


def test_a_line_counts_what_all_answers_took():
    def sample(text, correct, passes, tokens, log_probability):
        return {"id": "a", "num_steps": 1, "text": text, "strict_value": text, "value": text, "correct": correct,
                "correct_flexible": correct, "truncated": False, "forward_passes": passes, "executed_calls": passes - 1,
                "generated_tokens": tokens, "log_probability": log_probability}  # fmt: skip

    rows = [sample("4", False, 6, 2, -1.0), sample("5", True, 7, 3, -6.0), sample("5", True, 6, 2, -3.0)]
    line = combined(rows)
    assert (line["text"], line["correct"], line["votes"], len(line["samples"])) == ("5", True, 2, 3)
    assert (line["forward_passes"], line["executed_calls"], line["generated_tokens"]) == (4 + 7, 3 + 7, 7)
    assert likeliest(line["samples"])["text"] == "4"
    too_long = {"correct": False, "too_long": True}
    numbers = sampled_summary([line, too_long])
    assert numbers["pass_at_k"] == pytest.approx({1: 1 / 3, 2: 1 / 2, 3: 1 / 2})
    assert numbers["correct_samples"] == 2
    assert numbers["maj_at_n"] == {"n": 3, "correct": 1, "total": 2}
    assert numbers["best_at_n"] == {"n": 3, "correct": 0, "total": 2}
    assert sampled_summary([{"correct": True}]) == {}


def test_a_sample_depends_on_seed_question_and_number_alone(student):
    whole = student.answer(QUESTIONS, max_new_tokens=6, sampling=WARM, samples=4)
    assert [len(answers) for answers in whole] == [4] * 6
    assert whole[0] == whole[4]
    assert len({answer.text for answers in whole for answer in answers}) > 6
    for size in (1, 3, 5):
        again = student.answer(QUESTIONS, batch_size=size, max_new_tokens=6, sampling=WARM, samples=4)
        assert [[a.text for a in answers] for answers in again] == [[a.text for a in answers] for answers in whole]
    fewer = student.answer(QUESTIONS[1:3], max_new_tokens=6, sampling=WARM, samples=2)
    assert [[a.text for a in answers] for answers in fewer] == [[a.text for a in row[:2]] for row in whole[1:3]]
    assert student.answer(QUESTIONS[:1], max_new_tokens=6, sampling=WARM)[0].text == whole[0][0].text
    other = student.answer(QUESTIONS, max_new_tokens=6, sampling=Sampling(1.5, seed=4), samples=4)
    assert [[a.text for a in answers] for answers in other] != [[a.text for a in answers] for answers in whole]


def test_without_a_seed_the_global_one_decides(student):
    def draw():
        torch.manual_seed(0)
        return student.answer(["3+4?"] * 5, max_new_tokens=6, sampling=Sampling(1.5))

    assert draw() == draw()
    assert len({answer.text for answer in draw()}) > 1


def test_draws_have_the_models_distribution():
    logits, count = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 20000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for top_p, expected in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.7, [0.625, 0.375, 0, 0])):
        tokens = Sampling(1.0, top_p).choose(logits.expand(count, -1), draws)
        shares = [float((tokens == i).float().mean()) for i in range(4)]
        assert shares == pytest.approx(expected, abs=1e-3)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert Sampling(1.0, 0.7).choose(logits.expand(2, -1), edges).tolist() == [0, 1]


def test_log_probability_is_that_of_the_drawn_tokens(student):
    """Against the likeliest answer: at a temperature near 0 both are the same, and the chances are those of its logits."""
    answer = student.answer(["3+4?"], max_new_tokens=3, sampling=Sampling(1e-4, seed=0))[0]
    assert answer.text == student.answer(["3+4?"], max_new_tokens=3, sampling=Sampling())[0].text
    assert answer.log_probability is not None
    assert -3 * math.log(400) < answer.log_probability < 0
    assert student.answer(["3+4?"], sampling=Sampling())[0].log_probability is None


def test_the_files_hold_all_samples_and_are_scored_again(folder, student, tmp_path, capsys):
    assert main(["evaluate", "--checkpoint", str(folder), *SETTINGS, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "4 answers each at temperature 1.5: pass@1" in said
    results = tmp_path / "results_chains.steps2.limit5.samples4.temp1-5.yaml"
    predictions = tmp_path / "predictions_chains.steps2.limit5.samples4.temp1-5.jsonl"
    before = yaml.safe_load(results.read_text())
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [len(line["samples"]) for line in lines] == [4] * 5
    assert before["samples"] == 4
    assert list(before["pass_at_k"]) == [1, 2, 3, 4]
    assert before["pass_at_k"][1] == pytest.approx(before["correct_samples"] / 20)
    assert before["maj_at_n"]["correct"] == before["correct"] == sum(line["correct"] for line in lines)
    again = evaluate(student, "chains", output=tmp_path / "again", num_steps=2, limit=5, max_new_tokens=4, samples=4,
                     temperature=1.5, batch_size=3, quiet=True)[0]  # fmt: skip
    strip = ("wall_time_s", "batch_size")
    assert {k: v for k, v in again.fields.items() if k not in strip} == {
        k: v for k, v in before.items() if k not in strip
    }
    assert again.predictions.read_text() == predictions.read_text() or _texts(again.predictions) == _texts(predictions)
    assert main(["rescore", str(predictions), "--output_dir", str(tmp_path / "scored")]) == 0
    assert (tmp_path / "scored" / predictions.name).read_text() == predictions.read_text()
    assert yaml.safe_load((tmp_path / "scored" / results.name).read_text()) == before | {"rescored": True}


def _texts(path):
    return [[sample["text"] for sample in json.loads(line)["samples"]] for line in path.read_text().splitlines()]


def test_a_new_reader_of_answers_votes_again(student, tmp_path):
    """Every sample's text is read again, and the vote is taken among the new readings."""
    result = evaluate(student, [{"question": "3+4?", "answer": "7"}], output=tmp_path, samples=3, temperature=1.0,
                      max_new_tokens=2, quiet=True)[0]  # fmt: skip
    line = json.loads(result.predictions.read_text())
    for sample, text in zip(line["samples"], ("5", "7", "7"), strict=True):
        sample |= {"text": text, "strict_value": None, "correct": False}
    result.predictions.write_text(json.dumps(line) + "\n")
    assert main(["rescore", str(result.predictions)]) == 0
    again, numbers = json.loads(result.predictions.read_text()), yaml.safe_load(result.results.read_text())
    assert (again["text"], again["votes"], again["correct"]) == ("7", 2, True)
    assert numbers["pass_at_k"] == pytest.approx({1: 2 / 3, 2: 1.0, 3: 1.0})


def test_sampled_results_do_not_stand_in_for_the_students_own(folder, tmp_path):
    run = tmp_path / "run"
    words = [
        "evaluate",
        "--checkpoint",
        str(folder),
        "--output",
        str(run),
        "--limit",
        "3",
        "--max_new_tokens",
        "2",
        "--quiet",
    ]
    assert main(words) == 0
    assert main([*words, "--samples", "2", "--temperature", "0.7", "--sampling_seed", "5"]) == 0
    assert main([*words, "--temperature", "0.7", "--top_p", "0.9"]) == 0
    read = {path.name: read_result(path) for path in run.glob("results_*.yaml")}
    changes = {name: split_part(result.part)[1] for name, result in read.items()}
    assert changes == {
        "results_chains.limit3.yaml": {},
        "results_chains.limit3.samples2.temp0-7.seed5.yaml": {"samples": "2", "temp": "0-7", "seed": "5"},
        "results_chains.limit3.temp0-7.topp0-9.yaml": {"temp": "0-7", "topp": "0-9"},
    }
    assert [result.path.name for result in plain(find_runs([run])[0])] == ["results_chains.limit3.yaml"]


def test_items_that_are_too_long_count_as_wrong(student, monkeypatch):
    asked = [Example("a", "3+4?", ("3+4=7",), "7"), Example("b", "5+1?", ("5+1=6",), "6")]
    monkeypatch.setattr(
        student, "too_long", lambda questions, *_: {i: "long" for i, q in enumerate(questions) if q == "5+1?"}
    )
    lines = predict(student, asked, "latent", 2, 2, sampling=WARM, samples=3)
    assert [len(line.get("samples", ())) for line in lines] == [3, 0]
    assert sampled_summary(lines)["pass_at_k"][3] <= 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "4"], "at temperature 0 all answers are the same"),
        (["--top_p", "0.9"], "--top_p has no effect at temperature 0"),
        (["--sampling_seed", "1"], "--sampling_seed has no effect at temperature 0"),
        (["--samples", "0", "--temperature", "1"], "samples"),
        (["--samples", "2", "--temperature", "nan"], "temperature"),
        (["--samples", "2", "--temperature", "inf"], "temperature"),
        (["--samples", "2", "--temperature", "1", "--top_p", "0"], "top_p"),
        (["--samples", "99999", "--temperature", "1"], "samples"),
    ],
)
def test_bad_flags(folder, tmp_path, capsys, words, said):
    assert main(["evaluate", "--checkpoint", str(folder), "--output", str(tmp_path / "new"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("samples", [0, -1, True, 1.5, "2"])
def test_samples_is_a_count(student, samples):
    with pytest.raises(ConfigError, match="samples"):
        student.answer(["3+4?"], sampling=WARM, samples=samples)
    with pytest.raises(ConfigError, match="temperature 0"):
        student.answer(["3+4?"], sampling=Sampling(), samples=2)
