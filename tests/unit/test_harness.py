"""A student as a model of lm-evaluation-harness: requests, settings, refusals; and `kava evaluate`'s own number.

Only the last tests need the harness: `pip install 'kava[harness]'`.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hub import tiny_student
from kava.cli.main import main as kava
from kava.config import load_recipe
from kava.data.encode import CUE
from kava.data.generator import Generator
from kava.errors import ConfigError, DataError
from kava.harness import __main__ as harness
from kava.harness.model import HarnessStudent
from kava.harness.settings import read_settings
from kava.infer.sampling import Sampling
from kava.infer.student import Student, pick_device

ROOT = Path(__file__).parents[2]
QUESTIONS = ["3+4?", "How many clips are left of 12?", "1?", "3+4?"]


def request(prompt: str, **settings: Any) -> Any:
    return SimpleNamespace(args=(prompt, settings), task_name="sums")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.mktemp("harness") / "student", ["evaluation.max_new_tokens=6"])


@pytest.fixture(scope="module")
def model(folder: Path) -> HarnessStudent:
    return HarnessStudent(pretrained=str(folder), device="cpu", batch_size="3")


@pytest.mark.parametrize(
    ("reasoning", "size"), [("latent", 1), ("cot", "auto"), ("direct", "auto:4"), ("latent", None)]
)
def test_texts_are_the_students_answers(folder: Path, reasoning: str, size: Any) -> None:
    model = HarnessStudent(pretrained=str(folder), reasoning=reasoning, device="cpu", batch_size=size, max_batch_size=8)
    texts = [answer.text for answer in model.student.answer(QUESTIONS, reasoning)]
    lead = "" if reasoning == "cot" else f"{CUE} "
    assert model.generate_until([request(f" {q}\n") for q in QUESTIONS], disable_tqdm=True) == [lead + t for t in texts]


@pytest.mark.parametrize("device", [None, "cuda:0", "cpu"])
def test_the_harness_names_a_gpu_where_no_device_is_given(folder: Path, device: str | None) -> None:
    model = HarnessStudent(pretrained=str(folder), device=device)
    assert model.student.model.device.type == pick_device(device if device == "cpu" else "auto").type


def test_each_request_has_its_own_settings(model: HarnessStudent) -> None:
    (whole,) = (answer.text for answer in model.student.answer(QUESTIONS[1:2], max_new_tokens=5))
    (short,) = (answer.text for answer in model.student.answer(QUESTIONS[1:2], max_new_tokens=2))
    assert len(short) < len(whole)
    stop = whole[2]
    requests = [
        request(QUESTIONS[1], max_gen_toks=5),
        request(QUESTIONS[1], max_gen_toks=2, until=["\n\n\n"]),
        request(QUESTIONS[1], max_gen_toks=5, until=stop),
        request(QUESTIONS[1], max_gen_toks=5, until=["never", "", stop]),
    ]
    before = whole[: whole.index(stop)]
    texts = model.generate_until(requests, disable_tqdm=True)
    assert texts == [f"{CUE} {text}" for text in (whole, short, before, before)]


@pytest.mark.parametrize(
    ("settings", "sampling"),
    [
        ({}, Sampling()),
        ({"do_sample": False, "temperature": 0.7, "top_k": 50}, Sampling()),
        ({"temperature": 0.0, "num_beams": 1}, Sampling()),
        ({"temperature": 0.7, "top_p": 0.9}, Sampling(0.7, 0.9)),
        ({"do_sample": True}, Sampling(1.0)),
        ({"do_sample": True, "temperature": 0}, Sampling()),
    ],
)
def test_how_tokens_are_chosen(settings: dict[str, Any], sampling: Sampling) -> None:
    assert read_settings(settings, "sums").sampling == sampling


def test_limit_in_its_usual_names() -> None:
    assert read_settings({}, "sums").limit is None
    assert read_settings({"max_new_tokens": 7}, "sums").limit == 7
    assert read_settings({"max_tokens": 7, "max_gen_toks": 9}, "sums").limit == 9


def test_repeats_of_a_question_are_drawn_anew(model: HarnessStudent) -> None:
    texts = model.generate_until([request("3+4?", temperature=1.0, do_sample=True)] * 6, disable_tqdm=True)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4}, "task sums: a student has no generation setting 'num_beams'"),
        ({"do_sample": True, "top_k": 50}, "'top_k'"),
        ({"max_gen_toks": 0}, "task sums: max_gen_toks = 0"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
    ],
)
def test_settings_a_student_does_not_have(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(settings, "sums")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no pretrained"),
        ({"pretrained": "x", "reasonning": "cot"}, "no argument 'reasonning'"),
        ({"pretrained": "x", "reasoning": "slow"}, "reasoning = 'slow' is not one of latent, cot, direct"),
        ({"pretrained": "x", "exact_adapters": "false"}, "exact_adapters = 'false'"),
        ({"pretrained": "x", "batch_size": "0"}, "--batch_size 0"),
        ({"pretrained": "x", "batch_size": "many"}, "--batch_size many"),
    ],
)
def test_model_args_are_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HarnessStudent(**arguments)


def test_what_a_student_cannot_be_asked(model: HarnessStudent) -> None:
    for ask in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(ConfigError, match="task sums asks for log-likelihoods"):
            ask([request("a")])
    with pytest.raises(ConfigError, match="apply_chat_template"):
        model.apply_chat_template([])
    with pytest.raises(DataError, match="task sums: question 2 is empty"):
        model.generate_until([request("3+4?"), request(" ")], disable_tqdm=True)


def test_a_prompt_that_does_not_fit(
    model: HarnessStudent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.student.model), "max_positions", 200)
    long = "1+" * 200
    texts = model.generate_until([request(long), request("3+4?")], disable_tqdm=True)
    assert texts == ["", *model.generate_until([request("3+4?")], disable_tqdm=True)]
    assert "1 of 2 prompts are too long" in caplog.text
    with pytest.raises(DataError, match="task sums: none of 1 prompts fits"):
        model.generate_until([request(long)], disable_tqdm=True)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert harness.main() == 2
    assert capsys.readouterr().err == "error: kava.harness needs lm_eval\n  hint: pip install 'kava[harness]'\n"


# -- with the harness --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a minute's training, right on a part of what it is asked."""
    pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'kava[harness]'")
    folder = tmp_path_factory.mktemp("trained")
    assert kava(["train", "--config", "embedded", "training.max_steps=60", "--output_dir", str(folder), "--quiet"]) == 0
    return folder / "best_checkpoint"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the harness's command line in this process."""
    monkeypatch.setattr(sys, "argv", ["kava.harness", "run", *words])
    return harness.main()


def task_folder(folder: Path, rows: Path) -> Path:
    """The example task, with these rows."""
    shutil.copytree(ROOT / "examples" / "harness", folder)
    task = (folder / "kava_rows.yaml").read_text(encoding="utf-8")
    new = task.replace("test: test.jsonl", f"test: {rows}\n  cache_dir: {folder / 'cache'}")
    assert new != task
    (folder / "kava_rows.yaml").write_text(new, encoding="utf-8")
    return folder


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(path: Path) -> Path:
    """A part of the built-in test set."""
    dataset = load_recipe("embedded").dataset
    items = Generator("chains", dataset.generator, dataset.seed).split("test")[::20]
    return write([{"question": item.question, "steps": item.steps, "answer": item.answer} for item in items], path)


def word_problems(path: Path, folder: Path, mode: str) -> Path:
    """Rows of GSM8K, the longest not fitting into the student; every second gold answer is what the student says."""
    lines = (ROOT / "tests" / "real" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    student = Student.from_pretrained(folder, "cpu")
    long = student.too_long([row["question"] for row in rows], mode)
    assert 0 < len(long) < len(rows)
    fitting = [row for place, row in enumerate(rows) if place not in long]
    for row, answer in list(zip(fitting, student.answer([row["question"] for row in fitting], mode), strict=True))[::2]:
        if answer.value is not None:
            row["answer"] = f"{row['answer'].rpartition('####')[0]}#### {answer.value}"
    return write(rows, path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["chains", "gsm8k"])
@pytest.mark.parametrize("mode", ["latent", "cot"])
def test_the_number_of_kava_evaluate(
    trained: Path, mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{kind}.jsonl"
    rows = sums(file) if kind == "chains" else word_problems(file, trained, mode)
    words = ["--checkpoint", str(trained), "--mode", mode, "--output", str(tmp_path / "kava"), "--device", "cpu"]
    assert kava(["evaluate", *words, "--dataset", str(rows), "--quiet"]) == 0
    (results,) = (tmp_path / "kava").glob("results_*.yaml")
    (predictions,) = (tmp_path / "kava").glob("predictions_*.jsonl")
    expected = yaml.safe_load(results.read_text(encoding="utf-8"))
    folder = task_folder(tmp_path / "task", rows)
    words = ["--include_path", str(folder), "--tasks", "kava_rows", "--batch_size", "7"]
    words += ["--model_args", f"pretrained={trained},reasoning={mode}", "--output_path", str(tmp_path / "out")]
    assert run(monkeypatch, "--model", "kava", *words, "--log_samples") == 0
    (report,) = (tmp_path / "out").rglob("results_*.json")
    numbers = json.loads(report.read_text(encoding="utf-8"))["results"]["kava_rows"]
    assert numbers["exact_match,none"] == expected["accuracy"]
    assert numbers["flexible,none"] == expected["flexible_accuracy"]
    assert 0 < expected["flexible_accuracy"] < 1
    assert kind == "gsm8k" or 0 < expected["accuracy"] < 1
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    made = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    made.sort(key=lambda line: line["doc_id"])
    lead = f"{CUE} " if mode == "latent" else ""
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    texts = ["" if line.get("too_long") else lead + line["text"] for line in lines]
    assert [line["resps"] for line in made] == [[[text]] for text in texts]
    assert [line["exact_match"] for line in made] == [line["correct"] for line in lines]


@pytest.mark.long
def test_a_users_mistakes_at_the_command_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = task_folder(tmp_path / "task", sums(tmp_path / "sums.jsonl"))
    likelihood = (folder / "kava_rows.yaml").read_text(encoding="utf-8").replace("generate_until", "loglikelihood")
    likelihood = likelihood.partition("generation_kwargs")[0] + "num_fewshot: 0\n"
    (folder / "kava_likelihood.yaml").write_text(likelihood.replace("task: kava_rows", "task: kava_likelihood"))
    common = ["--model", "kava", "--include_path", str(folder), "--device", "cpu"]
    good = f"pretrained={trained}"
    for task, arguments, words in (
        ("kava_likelihood", good, "task kava_likelihood asks for log-likelihoods"),
        ("kava_rows", f"{good},reasonning=cot", "--model_args: kava has no argument 'reasonning'"),
        ("kava_rows", "reasoning=cot", "--model_args has no pretrained"),
        ("kava_rows", f"pretrained={tmp_path / 'none'}", "does not exist"),
    ):
        assert run(monkeypatch, *common, "--tasks", task, "--model_args", arguments) == 2
        assert words in capsys.readouterr().err.split("error: ")[-1].splitlines()[0]
    assert run(monkeypatch, *common, "--tasks", "kava_rows", "--model_args", good, "--apply_chat_template") == 2
    assert "--apply_chat_template: a student writes its own prompt" in capsys.readouterr().err
