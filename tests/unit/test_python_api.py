"""The Python API: the names of `kava`, training, evaluating and asking, with the files and errors of the commands."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback

import kava
from hub import tiny_student
from kava import Student, create_environment_adapter, distill, evaluate, load_recipe, train
from kava.cli.main import main
from kava.config import Recipe, explain
from kava.data.example import Example, content_hash
from kava.errors import CheckpointError, ConfigError, DataError, KavaError, RunError
from kava.infer.sampling import Sampling
from kava.training.distill import for_machine

QUICK = {
    "dataset.generator.train_size": 64, "dataset.generator.val_size": 8, "training.batch_size": 8,
    "training.max_steps": 4, "logging.logging_steps": 1, "logging.eval_steps": 2, "logging.save_steps": 2,
    "logging.report_to": [], "evaluation.max_new_tokens": 4, "system.device": "cpu",
}  # fmt: skip
EXPLICIT = {**QUICK, "explicit.target_len": 4}
ROWS = [
    {"question": f"{i}+3-1?", "steps": [f"{i}+3={i + 3}", f"{i + 3}-1={i + 2}"], "answer": i + 2} for i in range(1, 25)
]


def recipe(**settings: Any) -> Recipe:
    return load_recipe("embedded", QUICK | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("api") / "run"
    return train(recipe(), folder, quiet=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.from_pretrained(tiny_student(tmp_path_factory.mktemp("student") / "best_checkpoint"))


# -- the names -------------------------------------------------------------------------------------------------------


def test_no_submodule_hides_a_function() -> None:
    """An imported submodule becomes an attribute of its package, so one named like a function would replace it."""
    names = [name for name in kava.__all__ if name != "__version__"]
    before = {name: getattr(kava, name) for name in names}
    for module in pkgutil.walk_packages(kava.__path__, "kava."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert {name: getattr(kava, name) for name in names} == before
    assert all(callable(value) for value in before.values())
    assert set(kava.__all__) <= set(dir(kava))


def test_import_loads_nothing_heavy() -> None:
    code = """
import time
began = time.perf_counter()
import kava, sys
seconds = time.perf_counter() - began
assert not {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules)
assert seconds < 0.3, seconds
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_is_where_the_package_says() -> None:
    assert set(kava._MODULE_OF) == set(kava.__all__) - {"__version__"}
    for name, module in kava._MODULE_OF.items():
        assert getattr(importlib.import_module(module), name) is getattr(kava, name)
    assert not {module.name for module in pkgutil.iter_modules(kava.__path__)} & set(kava.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = kava.trian


# -- eight lines, as README has them ---------------------------------------------------------------------------------

EXAMPLE = """\
from kava import Student, evaluate, load_recipe, train

recipe = load_recipe("embedded", {"training.max_steps": 20})
result = train(recipe, "outputs/first", resume="auto")
print(result.best, [line["loss"] for line in result.log if "loss" in line])
print(evaluate(result.best_checkpoint, "chains", limit=50)[0].accuracy)
student = Student.from_pretrained(result.best_checkpoint)
print(student.answer(["3+4*2-1?"])[0].text)
"""


def test_training_and_asking_in_eight_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it stands, on fewer examples and updates."""
    assert len(EXAMPLE.splitlines()) <= 8
    monkeypatch.chdir(tmp_path)
    few = {**QUICK, "training.max_steps": 2, "logging.eval_steps": 2}
    exec(EXAMPLE.replace('{"training.max_steps": 20}', repr(few)), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    run = tmp_path / "outputs" / "first"
    assert {"results_chains.limit50.yaml", "predictions_chains.limit50.jsonl"} <= {path.name for path in run.iterdir()}


# -- load_recipe -----------------------------------------------------------------------------------------------------


def test_a_recipe_from_texts_or_values() -> None:
    texts = [
        "training.max_steps=20",
        "dataset.name=own.jsonl",
        "logging.report_to=[]",
        "training.hf.group_by_length=true",
    ]
    values = {
        "training.max_steps": 20, "dataset": {"name": Path("own.jsonl")}, "logging": {"report_to": []},
        "training": {"hf.group_by_length": True},
    }  # fmt: skip
    changes = {"training.max_steps", "dataset.name", "logging.report_to"}
    for overrides in (texts, values):
        made = load_recipe("debug", overrides)
        assert made == load_recipe("debug", texts)
        assert changes <= {row.key for row in explain(made) if row.origin in ("command line", "overrides")}
    assert load_recipe("debug", "training.max_steps=20") == load_recipe("debug", ["training.max_steps=20"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.max_step": 20}, r"overrides: unknown key.*\n.*training\.max_steps"),
        (["training.max_step=20"], r"command line: unknown key.*\n.*training\.max_steps"),
        ({"training.max_steps": "many"}, "overrides: training.max_steps = many is not valid: needs an integer"),
        ({"rkv.method": "rvk"}, r"rkv\.method = rvk"),
        ({"training": 3}, "is a section of keys"),
        ({3: 4}, "unknown key '3'"),
        ({"latent.num_tokens": 0, "latent.num_iterations": 5, "loss.alpha2_kv": 0}, "overrides: .* has no effect"),
        ("training.max_steps", "unexpected 'training.max_steps'"),
    ],
)
def test_a_wrong_setting_is_named(overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("embedded", overrides)


# -- train -----------------------------------------------------------------------------------------------------------


def test_the_result_tells_the_run(trained: Any) -> None:
    assert (trained.steps, trained.metric, trained.finished, trained.exit_code) == (4, "accuracy", True, 0)
    assert trained.best_checkpoint == trained.output_dir / "best_checkpoint"
    lines = [json.loads(line) for line in (trained.output_dir / "log.jsonl").read_text().splitlines()]
    assert trained.log == lines
    assert [line["step"] for line in trained.log if "loss" in line] == [1, 2, 3, 4]
    assert max(line["eval_accuracy"] for line in trained.log if "eval_accuracy" in line) == trained.best
    assert train(recipe(), trained.output_dir, resume="auto", quiet=True) == trained  # finished: nothing to do
    with pytest.raises(AttributeError):
        trained.steps = 3


def test_the_command_makes_the_same_run(trained: Any, tmp_path: Path) -> None:
    settings = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in QUICK.items()]
    run = tmp_path / "run"
    assert main(["train", "--config", "embedded", "--output_dir", str(run), "--quiet", *settings]) == 0
    for name in ("recipe.yaml", "data_card.json"):
        assert (run / name).read_bytes() == (trained.output_dir / name).read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in trained.output_dir.iterdir()}
    weights = [folder / "best_checkpoint" / "trained.safetensors" for folder in (run, trained.output_dir)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class Recorder(TrainerCallback):
    """Counts calls; stops the run after `last` updates."""

    def __init__(self, last: int = 10**9):
        self.last, self.steps, self.logs, self.evaluated = last, 0, 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        control.should_training_stop = control.should_training_stop or self.steps == self.last

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs += "loss" in logs


def test_callbacks_are_called_and_may_stop_the_run(tmp_path: Path) -> None:
    recorder = Recorder(3)
    result = train(recipe(), tmp_path / "run", quiet=True, callbacks=[recorder])
    assert (recorder.steps, recorder.logs, result.steps, result.finished) == (3, 3, 3, True)
    assert result.best_checkpoint is not None
    for wrong, said in (([len], r"callbacks\[0\] is a builtin"), (recorder, "is a Recorder, not a list")):
        with pytest.raises(ConfigError, match=said):
            train(recipe(), tmp_path / "other", callbacks=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_a_run_in_a_thread(tmp_path: Path) -> None:
    """Python delivers signals to the main thread only, so none can be caught elsewhere."""
    results: list[Any] = []
    few = recipe(**{"training.max_steps": 1})
    thread = threading.Thread(target=lambda: results.append(train(few, tmp_path / "run", quiet=True)))
    thread.start()
    thread.join(300)
    assert [result.steps for result in results] == [1]


class Crash(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise OSError("power cut")


def test_rows_in_memory_and_resume(tmp_path: Path) -> None:
    """A run on rows, stopped after its checkpoint of update 2 and continued: the bits of one that was not stopped."""
    validation = [{"question": "7+2?", "answer": "9"}, {"question": "8-5?", "answer": 3}]
    rows = {"train_data": ROWS, "validation_data": validation}
    whole = train(recipe(), tmp_path / "whole", quiet=True, **rows)
    card = json.loads((tmp_path / "whole" / "data_card.json").read_text())
    examples = [Example("", row["question"], tuple(row["steps"]), str(row["answer"])) for row in ROWS]
    assert (card["source"], card["examples"], card["sha256"]) == ("rows in memory", 24, content_hash(examples))
    assert yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())["dataset"]["name"] == "rows in memory"
    assert whole.best in (0, 0.5, 1)
    stopped = tmp_path / "stopped"
    with pytest.raises(OSError, match="power cut"):
        train(recipe(), stopped, quiet=True, callbacks=[Crash], **rows)
    with pytest.raises(RunError, match="other training data"):
        train(recipe(), stopped, "auto", True, train_data=ROWS[1:], validation_data=validation)
    with pytest.raises(RunError, match=r"dataset\.name was rows in memory, is chains"):
        train(recipe(), stopped, "auto", True)
    assert train(recipe(), stopped, "auto", True, **rows).steps == 4
    for place in ("checkpoint-step4", "best_checkpoint"):
        name = f"{place}/trained.safetensors"
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_are_held_out_and_checked_like_those_of_a_file(tmp_path: Path) -> None:
    train(recipe(**{"training.max_steps": 1}), tmp_path / "run", quiet=True, train_data=ROWS)
    assert json.loads((tmp_path / "run" / "data_card.json").read_text())["examples"] == 22  # a tenth is validated on
    bad = [*ROWS[:3], {"question": "3+4?", "steps": "3+4=7"}]
    for rows, said in (
        (bad, "train_data row 4: field 'answer' .*is missing"),
        ([*ROWS[:2], "3+4?"], "train_data row 3 holds a str"),
        ([], "the train split is empty"),
        ("rows.jsonl", "train_data is a str, not a list of rows"),
        (iter(ROWS), "not a list of rows"),
        ({"question": "3?"}, "train_data is a dict"),
        (3, "train_data is a int"),
    ):
        with pytest.raises(DataError, match=said):
            train(recipe(), tmp_path / "bad", resume="auto", quiet=True, train_data=rows)
    with pytest.raises(DataError, match=r"validation_data row 2: field 'answer' .*is missing"):
        train(recipe(), tmp_path / "bad", "auto", True, validation_data=[ROWS[0], {"question": "3?"}])


@pytest.mark.parametrize("wrong", [None, 3, {"training": {}}, ["embedded"]])
def test_what_is_no_recipe_is_refused(wrong: Any, tmp_path: Path) -> None:
    for verb in (train, distill):
        with pytest.raises(ConfigError, match="is no recipe"):
            verb(wrong, tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown recipe 'embeded'"):
        train("embeded")


# -- distill ---------------------------------------------------------------------------------------------------------


def test_distill_trains_the_explicit_line(tmp_path: Path) -> None:
    result = distill(load_recipe("explicit_embedded", EXPLICIT), tmp_path / "run", quiet=True, callbacks=[Recorder])
    assert (result.metric, result.steps) == ("ce", 4)
    names = {path.name for path in result.output_dir.iterdir()}
    assert {"training_log.txt", "TRAINING_COMPLETED.txt", "final_model", "best_checkpoint"} <= names
    student = Student.from_pretrained(result.best_checkpoint)
    assert student.answer(["3+4?"], max_new_tokens=3) == student.answer(["3+4?"], "cot", max_new_tokens=3)
    with pytest.raises(ConfigError, match="has no separate teacher"):
        distill("embedded", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"give create_environment_adapter\(\)"):
        distill("explicit_embedded", tmp_path / "other", machine="cuda")


def test_the_machine_chooses_what_was_not_overridden() -> None:
    machine = create_environment_adapter(quiet=True)
    recommended = machine.recipe_settings("cpu")
    own = load_recipe("explicit_embedded", {"system.device": "cpu"})
    chosen = for_machine(own, machine)
    assert chosen.training.batch_size == recommended["training.batch_size"]
    assert chosen.training.gradient_accumulation_steps == recommended["training.gradient_accumulation_steps"]
    kept = for_machine(load_recipe("explicit_embedded", ["training.batch_size=7", "system.device=cpu"]), machine)
    assert (kept.training.batch_size, kept.training.gradient_accumulation_steps) == (7, 1)
    workerless = for_machine(load_recipe("explicit_embedded", ["system.num_workers=0", "system.device=cpu"]), machine)
    assert "dataloader_prefetch_factor" not in workerless.training.hf or workerless.system.num_workers > 0


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_writes_what_the_command_writes(student: Student, tmp_path: Path) -> None:
    result = evaluate(student, "chains", limit=6, max_new_tokens=3, quiet=True)[0]
    words = ["--limit", "6", "--max_new_tokens", "3", "--output", str(tmp_path), "--quiet"]
    assert main(["evaluate", "--checkpoint", str(student.folder), "--dataset", "chains", *words]) == 0
    assert result.results == student.folder.parent / "results_chains.limit6.yaml"
    fields, wanted = (
        yaml.safe_load((path / result.results.name).read_text()) for path in (result.results.parent, tmp_path)
    )
    assert {**fields, "wall_time_s": 0} == {**wanted, "wall_time_s": 0}
    assert result.predictions.read_bytes() == (tmp_path / result.predictions.name).read_bytes()
    assert (result.dataset, result.total, result.accuracy) == ("chains", 6, result.correct / 6)
    assert result.forward_passes == fields["avg_forward_passes"]
    assert result.to_dict() == {**result.fields, "results": str(result.results), "predictions": str(result.predictions)}


def test_evaluate_on_rows_and_on_several_sets(student: Student, tmp_path: Path) -> None:
    seen: list[Any] = []
    common = {"max_new_tokens": 3, "quiet": True, "output": tmp_path, "report": seen.append}
    assert evaluate(student, ROWS[:5], mode="direct", **common)[0].results.name == "results_rows.direct.yaml"
    named = evaluate(student.folder, {"easy": ROWS[:3], "hard": ROWS[3:9]}, **common)
    assert [(result.dataset, result.total) for result in named] == [("easy", 3), ("hard", 6)]
    assert seen[1:] == named
    assert [result.dataset for result in evaluate(student, ["chains"], limit=2, **common)] == ["chains"]
    loose = Student(student.model, student.tokenizer, student.recipe)
    assert evaluate(loose, ROWS[:2], **common)[0].fields["checkpoint"] is None
    with pytest.raises(ConfigError, match="give output=FOLDER"):
        evaluate(loose, ROWS[:2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0}, "limit = 0"), ({"limit": True}, "limit = True"), ({"batch_size": -3}, "batch_size = -3"),
        ({"mode": "latnet"}, "did you mean 'latent'"), ({"ablate": "zeros"}, "did you mean 'zero'"),
        ({"cue": "mine"}, "cue = 'mine'"), ({"num_tokens": -1}, "num_tokens = -1"), ({"datasets": []}, "no set"),
        ({"datasets": [{"question": "3?"}]}, "rows row 1: field 'answer'"), ({"datasets": 7}, "rows is a int"),
        ({"datasets": "chians"}, "chains"), ({"max_new_tokens": 1.5}, "max_new_tokens = 1.5"),
        ({"ablate": "zero", "mode": "cot"}, "no effect in mode cot"),
    ],
)  # fmt: skip
def test_evaluate_refuses(student: Student, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KavaError, match=said):
        evaluate(student, **{"datasets": ROWS[:2], **changes})


@pytest.mark.parametrize("wrong", [None, 3, "/nowhere/at/all", []])
def test_what_is_no_student_is_refused(wrong: Any) -> None:
    for ask in (evaluate, Student.from_pretrained):
        with pytest.raises(CheckpointError):
            ask(wrong)


# -- Student.answer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ("3+4?", r"questions is a str, not a list of texts\n.*write \[question\]"), (None, "is a NoneType"),
        (5, "is a int"), ({"question": "3?"}, "is a dict"), (b"3?", "is a bytes"), ({"3?"}, "is a set"),
        ((q for q in ["3?"]), "is a generator"), (["3?", None], "question 2 is a NoneType"), ([3], "question 1 is a int"),
        (["3?", " \n"], "question 2 is empty"), ([["3?"]], "question 1 is a list"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_questions_is_refused(student: Student, questions: Any, said: str) -> None:
    for ask in (student.answer, student.think):
        with pytest.raises(DataError, match=said):
            ask(questions)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"), ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"batch_size": 0}, "batch_size = 0"), ({"batch_size": "4"}, "batch_size = '4'"),
        ({"mode": "thinking"}, "mode = 'thinking' is not one of latent, cot, direct"),
    ],
)  # fmt: skip
def test_sizes_and_modes_are_checked(student: Student, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        student.answer(["3?"], **settings)


def test_latents_and_sampling_are_checked(student: Student) -> None:
    latents = student.think(["3?", "4?"])
    latents[1, 0, 0] = torch.nan
    with pytest.raises(DataError, match="latents of question 2 are not finite"):
        student.answer(["3?", "4?"], latents=latents)
    with pytest.raises(DataError, match="have the shape"):
        student.answer(["3?"], latents=latents)
    with pytest.raises(DataError, match="not a tensor"):
        student.answer(["3?"], latents=latents.tolist())  # type: ignore[arg-type]
    for temperature, top_p in ((-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 2.0)):
        with pytest.raises(ConfigError):
            Sampling(temperature, top_p)


def test_no_question_no_answer_and_tuples_are_lists(student: Student) -> None:
    assert student.answer([]) == []
    assert student.answer(("3+4?", "5?"), max_new_tokens=3) == student.answer(["3+4?", "5?"], max_new_tokens=3)
