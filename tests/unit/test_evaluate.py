"""kava evaluate: what is counted, which sets, which files; and kava data check."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml

import hub
from kava.cli.evaluate import QUICK_LIMIT
from kava.cli.main import main
from kava.config import load_recipe
from kava.data.example import Example
from kava.errors import ConfigError, DataError
from kava.evaluation.eval_sets import EvalSet, load_eval_set, short_name
from kava.evaluation.result_files import files_for
from kava.evaluation.run import evaluate_set
from kava.evaluation.score import judge, predict, score, summary
from kava.infer.student import Answer, Student

FIELDS = {
    "dataset", "mode", "cue", "accuracy", "correct", "total", "unit", "metric", "strict_accuracy", "flexible_accuracy",
    "no_answer", "truncated", "avg_forward_passes", "std_forward_passes", "avg_executed_calls", "avg_generated_tokens",
    "by_steps", "set_size", "data_sha256", "wall_time_s", "config", "seed", "checkpoint", "step", "max_new_tokens", "batch_size",
    "temperature", "top_p", "device", "versions",
}  # fmt: skip


class Canned:
    """A student whose answers are known."""

    def __init__(self, texts, cue="given"):
        self.texts = texts
        self.recipe = load_recipe("debug", [f"evaluation.cue={cue}"])

    def answer(self, questions, mode="latent", batch_size=None, max_new_tokens=None, sampling=None, latents=None):
        from kava import answers

        made = []
        for question in questions:
            text, passes = self.texts[question]
            given = self.recipe.evaluation.cue == "given" and mode != "cot"
            value = answers.flexible(f"The answer is: {text}" if given else text)
            made.append(Answer(text, value, passes, text.endswith("..."), passes - 1, passes - 4))
        return made


def examples(*answers):
    return [Example(f"t/{i}", f"{'long ' * (9 - i)}q{i}?", ("1=1",) * (i % 2 + 1), a) for i, a in enumerate(answers)]


def canned(asked, *texts, **settings):
    return Canned({e.question: (text, 5 + i) for i, (e, text) in enumerate(zip(asked, texts, strict=True))}, **settings)


def test_every_item_counts():
    asked = examples("1,234", "5", "0.5", "7", "-3")
    student = canned(asked, "1234", "about 5", "50%", "no idea", "-3 and 4 ...")
    found = predict(student, asked, batch_size=2)
    assert [item["id"] for item in found] == [e.id for e in asked]
    assert [item["correct"] for item in found] == [True, False, True, False, True]
    assert [item["correct_flexible"] for item in found] == [True, True, True, False, True]
    numbers = summary(found)
    assert (numbers["correct"], numbers["total"], numbers["accuracy"]) == (3, 5, 0.6)
    assert numbers["strict_accuracy"] == 0.6
    assert numbers["flexible_accuracy"] == 0.8
    assert numbers["no_answer"] == pytest.approx(0.2)
    assert numbers["truncated"] == pytest.approx(0.2)
    assert numbers["avg_forward_passes"] == 7
    assert numbers["std_forward_passes"] == pytest.approx(2.5**0.5)  # a sample's
    assert numbers["avg_executed_calls"] == 6
    assert numbers["by_steps"] == {1: {"correct": 3, "total": 3}, 2: {"correct": 0, "total": 2}}
    assert score(student, asked, "latent") == {
        "accuracy": 0.6, "no_answer": pytest.approx(0.2), "truncated": pytest.approx(0.2), "avg_forward_passes": 7
    }  # fmt: skip


def test_one_item_has_no_spread():
    asked = examples("5")
    assert summary(predict(canned(asked, "5"), asked))["std_forward_passes"] is None


def test_a_written_cue_must_be_written():
    asked = examples("5", "5", "5")
    texts = ("<<2+3=5>> The answer is: 5", "<<2+3=5>>", "The answer is: 5. <<1+1=2>>")
    for student, mode in ((canned(asked, *texts, cue="generated"), "latent"), (canned(asked, *texts), "cot")):
        found = predict(student, asked, mode)
        assert [item["correct"] for item in found] == [True, False, True]
        assert [item["correct_flexible"] for item in found] == [True, True, True]


def test_stopping_in_between_gives_nothing():
    asked = examples("5", "5")
    assert predict(canned(asked, "5", "5"), asked, batch_size=1, stop=lambda: True) is None


def test_gold_against_itself():
    for gold in ("72", "1,234", "-9867630", "0.0000123", "14053029.666666666", "3/4", "50%"):
        example = Example("t/0", "q?", (), gold)
        assert judge(example, Answer(gold, gold, 5, False, 4, 1), "latent")["correct"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data sets, and a run with a best and another checkpoint."""
    folder = tmp_path_factory.mktemp("work")
    hub._datasets(folder / "datasets")
    best = hub.tiny_student(folder / "run" / "best_checkpoint")
    hub.tiny_student(folder / "run" / "checkpoint-ep1")
    assert best.is_dir()
    return folder


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_results_and_predictions(here, capsys):
    assert evaluate("--checkpoint_dir", "run/best_checkpoint", "--eval_dataset", "gsm8k", "--max_new_tokens", 6) == 0
    results, items = read(here / "run/results_gsm8k.yaml"), lines(here / "run/predictions_gsm8k.jsonl")
    assert set(results) == FIELDS
    assert (results["dataset"], results["mode"], results["cue"]) == ("gsm8k", "latent", "given")
    assert results["total"] == results["set_size"] == len(items) == hub.TEST_ROWS
    assert (results["config"], results["seed"], results["max_new_tokens"]) == ("debug", 42, 6)
    assert results["correct"] == sum(item["correct"] for item in items)
    assert len(results["data_sha256"]) == 64
    assert results["by_steps"][2]["total"] == hub.TEST_ROWS
    assert "run/results_gsm8k.yaml" in capsys.readouterr().out
    assert not list((here / "run").glob(".partial*"))


def test_modes_parts_and_other_checkpoints_have_files_of_their_own(here, capsys):
    words = ("--max_new_tokens", 2, "--dataset")
    assert evaluate("--checkpoint", "run/best_checkpoint", *words, "svamp", "--mode", "direct") == 0
    assert "not trained for" in read(here / "run/results_svamp.direct.yaml")["note"]
    assert "not trained for" in capsys.readouterr().out
    assert evaluate("--checkpoint", "run/best_checkpoint", *words, "svamp", "--mode", "cot") == 0
    cot = read(here / "run/results_svamp.cot.yaml")
    assert ("note" in cot, cot["cue"], cot["total"], cot["by_steps"]) == (False, "generated", hub.TEST_ROWS, {})
    assert evaluate("--checkpoint", "run/best_checkpoint", *words, "svamp", "--limit", 5) == 0
    part = read(here / "run/results_svamp.limit5.yaml")
    assert (part["total"], part["set_size"]) == (5, hub.TEST_ROWS)
    assert not (here / "run/results_svamp.yaml").exists()
    assert evaluate("--checkpoint", "run/checkpoint-ep1", *words, "svamp") == 0
    assert (here / "run/checkpoint-ep1/results_svamp.yaml").is_file()
    assert not (here / "run/results_svamp.yaml").exists()


def test_only_what_is_missing_is_asked(here, tmp_path, capsys):
    out = ("--checkpoint", "run/best_checkpoint", "--output", tmp_path, "--max_new_tokens", 4)

    def sets(*words):
        capsys.readouterr()
        assert evaluate(*out, *words, "--missing", "--quiet") == 0
        return [found["dataset"] for found in json.loads(capsys.readouterr().out)]

    assert sets("--dataset", "svamp") == ["svamp"]
    assert sets("--dataset", "svamp", "gsm8k") == ["gsm8k"]
    assert sets("--dataset", "svamp", "gsm8k") == []
    assert sets("--dataset", "svamp", "--losses") == ["svamp"]  # the file there has none
    path = tmp_path / "results_gsm8k.yaml"
    path.write_text(re.sub(r"^step: .*$", "step: 99", path.read_text(), flags=re.MULTILINE))  # of another checkpoint
    assert sets("--dataset", "svamp", "gsm8k") == ["gsm8k"]


def test_output(here, tmp_path, capsys):
    words = ("--checkpoint", "run/best_checkpoint", "--max_new_tokens", 2, "--quiet", "--quick_test")
    assert evaluate(*words, "--dataset", "gsm8k", "--output", tmp_path / "a" / "results_x.yaml") == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"results_x.yaml", "predictions_x.jsonl"}
    assert evaluate(*words, "--datasets", "gsm8k-hard", "svamp", "--output", tmp_path / "b") == 0
    names = {
        pattern.format(s) for pattern in ("results_{}.yaml", "predictions_{}.jsonl") for s in ("gsm8k-hard", "svamp")
    }
    assert {
        p.name for p in (tmp_path / "b").iterdir()
    } == names  # no .limit16: the whole set is smaller than the quick part
    assert QUICK_LIMIT > hub.TEST_ROWS
    capsys.readouterr()
    assert evaluate(*words, "--dataset", "gsm8k", "--output", tmp_path / "c.json") == 0
    shown = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "c.json").read_text())
    assert stored.items() <= shown[0].items()


def test_default_sets_are_the_recipes(here, tmp_path, capsys):
    words = ("--max_new_tokens", 2, "--quiet", "--output", tmp_path / "o")
    assert evaluate("--checkpoint", "run/best_checkpoint", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["dataset"], one["total"]) for one in found] == [("chains", 16)]  # debug's own generator settings


@pytest.mark.parametrize("mode", ["latent", "cot", "direct"])
def test_batches_change_nothing(here, tmp_path, mode):
    """Texts and passes, to the byte of the file."""
    student = Student.from_pretrained("run/best_checkpoint")
    asked, checkpoint = load_eval_set(student.recipe, "gsm8k", 9), here / "run/best_checkpoint"
    found = []
    for size in (1, 7, 64):
        files = files_for(checkpoint, asked, mode, tmp_path / f"b{size}")
        results = evaluate_set(student, asked, files, checkpoint, mode, size, 4)
        found.append((files.predictions.read_bytes(), results["avg_forward_passes"], results["correct"]))
        assert results["batch_size"] == size
    assert found[0] == found[1] == found[2]
    assert found[0][0].count(b"\n") == 9


def test_held_out_problems_of_one_length(here, tmp_path, capsys):
    words = ("--checkpoint", "run/best_checkpoint", "--max_new_tokens", 2, "--quiet", "--dataset", "chains")
    assert evaluate(*words, "--num_steps", 3, "--limit", 40, "--output", tmp_path / "o") == 0
    results = read(tmp_path / "o/results_chains.steps3.limit40.yaml")
    assert results["by_steps"] == {3: {"correct": results["correct"], "total": 40}}
    asked = [item["question"] for item in lines(tmp_path / "o/predictions_chains.steps3.limit40.jsonl")]
    assert len(set(asked)) == 40
    recipe = load_recipe("embedded")
    assert len({e.question for e in load_eval_set(recipe, "chains", 600, 3).examples}) == 600


def test_a_limit_draws_always_the_same(here):
    recipe = load_recipe("debug")
    whole, five, eight = (load_eval_set(recipe, "gsm8k", limit) for limit in (None, 5, 8))
    assert [len(a.examples) for a in (whole, five, eight)] == [hub.TEST_ROWS, 5, 8]
    assert set(five.examples) < set(eight.examples) < set(whole.examples)
    assert five.examples == load_eval_set(recipe, "gsm8k", 5).examples
    assert five.sha256 != whole.sha256
    assert [e for e in whole.examples if e in five.examples] == five.examples


def test_data_hash_is_of_what_was_asked(here):
    digest = hashlib.sha256()
    asked = load_eval_set(load_recipe("debug"), "svamp", 2)
    for e in asked.examples:
        digest.update(f"{e.question}\x1f{e.answer}\x1f\x1e".encode())
    assert asked.sha256 == digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "short"),
    [("openai/gsm8k", "gsm8k"), ("datasets/svamp", "svamp"), ("a/mine.jsonl", "mine"), ("chains", "chains"), ("x/y", "y"),
     ("reasoning-machines/gsm-hard", "gsm8k-hard")],
)  # fmt: skip
def test_short_names(name, short):
    assert short_name(name) == short


def test_files(tmp_path, monkeypatch):
    asked = EvalSet("s", [], 0)
    run = tmp_path / "best_checkpoint"
    run.mkdir()
    assert files_for(run, asked, "latent", None).results == tmp_path / "results_s.yaml"
    monkeypatch.chdir(run)
    assert files_for(type(run)("."), asked, "cot", None).results == tmp_path / "results_s.cot.yaml"
    with pytest.raises(ConfigError, match="unknown ending"):
        files_for(run, asked, "latent", tmp_path / "x.txt")


def bad_inputs(here, tmp_path):
    words, mine = tmp_path / "words.jsonl", tmp_path / "deep" / "words.jsonl"
    words.write_text('{"question": "Who?", "answer": "Ann"}\n')
    mine.parent.mkdir()
    mine.write_text('{"question": "3?", "answer": "3"}\n')
    yield ["nosuchset"], "was not found"
    yield ["\x1b[2J"], "was not found"
    yield ["gsm8k", "nosuchset"], "was not found"
    yield [tmp_path / "none.jsonl"], "does not exist"
    yield [words], "is no number"
    yield ["gsm8k", "--num_steps", 3], "no effect on gsm8k"
    yield ["chains", "--num_steps", 1, "--limit", 500], "were asked for"
    yield ["gsm8k", "svamp", "--output", tmp_path / "x.yaml"], "there are 2 sets"
    yield ["gsm8k", "--output", tmp_path / "x.txt"], "unknown ending"
    yield ["gsm8k", "openai/gsm8k"], "two results"
    yield ["gsm8k", "--limit", 0], "limit"
    yield ["gsm8k", "--mode", "thinking"], "mode"


def test_each_mistake_is_one_line_and_writes_nothing(here, tmp_path, capsys):
    before = set((here / "run").rglob("*"))
    for words, said in bad_inputs(here, tmp_path):
        assert evaluate("--checkpoint", "run/best_checkpoint", "--dataset", *words) == 2, words
        out, err = capsys.readouterr()
        assert said in err, (words, err)
        assert len(err.splitlines()) <= 2
        assert not out
    assert set((here / "run").rglob("*")) == before


def test_a_folder_of_another_kind_is_told_from_a_student(here, tmp_path, capsys):
    empty, model, adapter = (tmp_path / name for name in ("empty", "model", "adapter"))
    for folder, file in ((empty, None), (model, "config.json"), (adapter, "adapter_config.json")):
        folder.mkdir()
        if file is not None:
            (folder / file).write_text("{}")
    seeds = tmp_path / "member"
    (seeds / "seed_1").mkdir(parents=True)
    (seeds / "seed_1" / "best_checkpoint").symlink_to(here / "run" / "best_checkpoint")
    for folder, said, hint in (
        (empty, "is empty", "give a run's best_checkpoint"),
        (model, "a model of transformers", "kava train"),
        (adapter, "an adapter of peft", "best_checkpoint"),
        (here / "run", "has no kava.json", "run/best_checkpoint"),
        (seeds, "has no kava.json", "member/seed_1/best_checkpoint"),
        (tmp_path / "nowhere", "does not exist", "best_checkpoint"),
    ):
        assert evaluate("--checkpoint", folder, "--quick_test") == 2
        message, advice = capsys.readouterr().err.splitlines()
        assert said in message
        assert hint in advice


def test_a_set_that_cannot_be_loaded_is_never_another_one(here):
    with pytest.raises(DataError):
        load_eval_set(load_recipe("debug"), "gsm8k-aug-test")


# -- kava data check -------------------------------------------------------------------------------------------------


def test_data_card(here, capsys):
    assert main(["data", "check", "gsm8k", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: card["examples"] for name, card in found["splits"].items()} == {
        "train": 44,
        "validation": 4,
        "test": 12,
    }
    assert "openai/gsm8k" in found["card"]
    assert "share_cot_empty" not in found["splits"]["train"]
    words = ["--tokenizer", str(here / "run/best_checkpoint"), "--split", "test"]
    assert main(["data", "check", "gsm8k", *words]) == 0
    shown = capsys.readouterr().out
    assert "share_cot_below_keep" in shown
    assert (
        main(["data", "check", "gsm8k", *words, "--quiet", "dataset.drop_last_step=false", "latent.num_tokens=4"]) == 0
    )
    card = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert (card["keep"], card["share_cot_empty"], card["share_cot_below_keep"]) == (4, 0, 0)


@pytest.mark.parametrize(
    "words", [["nosuch"], ["gsm8k-hard", "--split", "train"], ["gsm8k", "--confg", "x"], ["gsm8k", "dataset.nme=3"]]
)
def test_data_check_mistakes(here, capsys, words):
    assert main(["data", "check", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2
