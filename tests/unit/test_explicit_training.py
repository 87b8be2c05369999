"""Whole runs of the explicit line: what they leave behind, that a stopped one ends in the same bits, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compare import tiny_base
from kava.backbone.artifact import WEIGHTS
from kava.cli.main import main
from kava.config import Recipe, load_recipe
from kava.errors import CheckpointError, ConfigError, DataError, ModelError
from kava.infer.student import Student
from kava.training import method_line as lines_module
from kava.training.aux_state import FILE
from kava.training.checkpoint import find
from kava.training.folder import update
from kava.training.run import train
from kava.training.trainer import KavaTrainer
from zoo_tokenizers import bos

TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
SETTINGS = (
    "dataset.generator.train_size=24", "dataset.generator.val_size=4", "dataset.generator.test_size=6",
    "evaluation.max_new_tokens=8", "training.max_steps=9", "training.batch_size=4", "logging.logging_steps=1",
    "logging.eval_steps=3", "logging.save_steps=2", "logging.report_to=[]", "system.device=cpu",
)  # fmt: skip
EVERYTHING = (  # an MLP with dropout and a guard, and a map for hidden states of other widths
    "projector.direction=teacher_to_student", "loss.alpha1_codi=1", "projector.learning_rate=5e-3",
)  # fmt: skip
LAST = "checkpoint-step9"


def recipe_for(*settings: str) -> Recipe:
    return load_recipe("explicit_embedded", [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    outcome = train(recipe_for(*EVERYTHING), folder, quiet=True)
    assert (outcome.steps, outcome.metric, outcome.exit_code) == (9, "ce", 0)
    return folder


def journal(folder: Path) -> list[dict[str, Any]]:
    """log.jsonl without what a clock decides."""
    path = folder / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


# -- what a run leaves behind ----------------------------------------------------------------------------------------


def test_the_log_holds_every_term_and_the_held_out_numbers(undisturbed: Path) -> None:
    training = [line for line in journal(undisturbed) if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 10))
    for line in training:
        parts = line["ce_student"] + line["kv"] + line["codi"] + line["guard"]  # alpha2_kv and guard_weight are 1
        assert line["loss"] == pytest.approx(parts, abs=1e-3)
        assert {"grad_projector", "grad_backbone", "grad_embedding"} <= line.keys()
    held_out = [line for line in journal(undisturbed) if "eval_ce" in line]
    assert [line["step"] for line in held_out] == [3, 6, 9]
    for line in held_out:
        assert {"eval_ppl", "eval_cossim", "eval_cossim_centred", "eval_cossim_mean_predictor"} <= line.keys()
    meta = json.loads((undisturbed / "meta.json").read_text())
    assert meta["best_ce"] == min(line["eval_ce"] for line in held_out)
    assert held_out[-1]["eval_ce"] < held_out[0]["eval_ce"]


def test_all_that_is_trained_is_in_every_folder(undisturbed: Path) -> None:
    start, end = (load_file(undisturbed / name / FILE) for name in ("checkpoint-step8", LAST))
    assert {name.partition(".")[0] for name in end} == {"compare", "aux_terms"}
    for folder in ("best_checkpoint", "final_model", "checkpoint-ep1"):
        assert load_file(undisturbed / folder / FILE).keys() == end.keys()
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert moved == end.keys() - {"compare.reference"}
    assert bool((end["compare.reference"] > 0).all())


def test_there_are_two_learning_rates(undisturbed: Path) -> None:
    recipe = recipe_for(*EVERYTHING)
    saved = torch.load(undisturbed / "checkpoint-step8" / "optimizer.pt")
    own = {
        tuple(value.shape)
        for name, value in load_file(undisturbed / LAST / FILE).items()
        if name != "compare.reference"
    }
    rates: dict[float, set[tuple[int, ...]]] = {}
    for group in saved["param_groups"]:
        shapes = {tuple(saved["state"][number]["exp_avg"].shape) for number in group["params"]}
        rates.setdefault(group["initial_lr"], set()).update(shapes)
        assert 0 < group["lr"] < group["initial_lr"]  # both follow the schedule
    assert rates.keys() == {recipe.training.learning_rate, recipe.projector.learning_rate}
    assert rates[recipe.projector.learning_rate] == own
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    assert len(numbers) == len(set(numbers)) == json.loads((undisturbed / "meta.json").read_text())["trained_names"]


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_final_model_is_one_that_transformers_knows(lora: bool, undisturbed: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, last = undisturbed, LAST
    if lora:
        folder, last = tmp_path / "run", "checkpoint-step2"
        base = tiny_base(tmp_path / "base")
        few = ("training.max_steps=2", "training.learning_rate=0.05", "lora.r=4", "lora.enabled=true")
        train(recipe_for(f"model.name={base}", f"teacher.name={base}", *few), folder, quiet=True)
    student = Student.from_pretrained(folder / last, "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder / "final_model" / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final_model" / "student")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    for question in ("3+4*2-1?", "2*2?", "1+1-4?"):
        prompt = tokenizer(question + "\n", return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answer = student.answer([question], mode="cot", max_new_tokens=8)[0]
        assert tokenizer.decode(made, skip_special_tokens=True).strip() == answer.text
        assert answer.num_tokens == 8 or tokenizer.eos_token_id in made.tolist()


def test_evaluate_needs_no_mode(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(undisturbed / "best_checkpoint", tmp_path / "best"))
    code = main(["evaluate", "--checkpoint", str(folder), "--limit", "4", "--losses", "--device", "cpu", "--quiet"])
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    result = found[0] if isinstance(found, list) else found
    assert (result["mode"], result["total"]) == ("cot", 4)
    assert result["losses"].keys() == {"ce_student", "ppl"}
    assert main(["evaluate", "--checkpoint", str(folder), "--limit", "4", "--mode", "latent", "--quiet"]) == 2
    assert "explicit line" in capsys.readouterr().err


# -- resume ----------------------------------------------------------------------------------------------------------


def assert_same_run(folder: Path, wanted: Path) -> None:
    """Student, projector, optimizer, best student and every logged number, bit for bit."""
    for place in (LAST, "best_checkpoint"):
        for name in (WEIGHTS, FILE):
            assert (folder / place / name).read_bytes() == (wanted / place / name).read_bytes(), f"{place}/{name}"
    assert (folder / "final_model" / FILE).read_bytes() == (wanted / "final_model" / FILE).read_bytes()
    mine, theirs = (torch.load(path / LAST / "optimizer.pt") for path in (folder, wanted))
    assert mine["param_groups"] == theirs["param_groups"]
    assert all(
        torch.equal(mine["state"][key][part], value)
        for key, state in theirs["state"].items()
        for part, value in state.items()
    )
    ours, others = (
        [line for line in journal(path) if "loss" in line or "eval_ce" in line] for path in (folder, wanted)
    )
    assert ours == others


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("update", 4),
        pytest.param("validation", 6, marks=pytest.mark.long),
        pytest.param("update", 6, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_stops_and_the_rest_follows_bit_for_bit(
    when: str, step: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM during an update, and during the validation after it (update 6 is validated and ends an epoch)."""
    folder = tmp_path / "run"

    def interrupted(right: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            done = len([line for line in journal(folder) if "loss" in line])
            if done == (step - 1 if when == "update" else step):
                signal.raise_signal(signal.SIGTERM)
            return right(*given, **named)

        return call

    with monkeypatch.context() as patch:
        if when == "update":
            patch.setattr(KavaTrainer, "compute_loss", interrupted(KavaTrainer.compute_loss))
        else:
            patch.setattr(lines_module, "held_out", interrupted(lines_module.held_out))
        outcome = train(recipe_for(*EVERYTHING), folder, quiet=True)
    assert (outcome.exit_code, outcome.steps) == (128 + signal.SIGTERM, step)
    assert not (folder / "final_model").exists()
    assert train(recipe_for(*EVERYTHING), folder, resume="auto", quiet=True).exit_code == 0
    assert_same_run(folder, undisturbed)


def test_a_checkpoint_without_its_projector_is_not_continued(undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    update(folder, finished=False)
    whole = (folder / LAST / FILE).read_bytes()
    (folder / LAST / FILE).write_bytes(whole[: len(whole) // 2])
    found, notes = find(folder)
    assert [checkpoint.path.name for checkpoint in found] == ["checkpoint-ep1", "checkpoint-step8"]
    assert f"{FILE} is torn" in notes[0]
    (folder / LAST / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"projector\.safetensors is missing"):
        train(recipe_for(*EVERYTHING), folder, resume=str(folder / LAST), quiet=True)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "plain": tiny_base(folder / "plain"),
        "other-tokens": tiny_base(folder / "other", tokenizer=bos()),
        "more-heads": tiny_base(folder / "heads", num_key_value_heads=4),
        "wide": tiny_base(folder / "wide", hidden_size=32, num_hidden_layers=3),
    }


REFUSED = {
    "another tokenizer": (
        "other-tokens",
        (),
        ModelError,
        r"teacher .* and student .* have different tokenizers",
        "family",
    ),
    "unequal caches": (
        "more-heads",
        ("projector.direction=none",),
        ConfigError,
        r"student's cache is 2 layers x 2 heads x 6, the teacher's 2 layers x 4 heads x 6",
        "projector.direction=student_to_teacher",
    ),
    "unequal vectors": (
        "wide",
        ("projector.direction=none", "explicit.form=aggregated"),
        ConfigError,
        r"2 layers x 2 heads x 6, the teacher's 3 layers x 2 heads x 8 \(24 and 48 after concat\)",
        "projector.direction",
    ),
    "layers": ("plain", ("explicit.layers=1-2",), ConfigError, r"explicit\.layers is 1-2.* has layers 0 to 1", ""),
    "cka layers": (
        "plain",
        ("explicit.cka_weight=1", "explicit.cka_layers=5"),
        ConfigError,
        "the student has layers 0 to 1",
        "middle",
    ),
    "codi": (
        "wide",
        ("loss.alpha1_codi=1", "loss.alpha2_kv=0", "projector.direction=none"),
        ConfigError,
        "student is 24 wide and the teacher 32",
        "loss.alpha1_codi=0",
    ),
    "blank": (
        "plain",
        ("model.name=kava:blank", "teacher.name=kava:blank"),
        ModelError,
        "not a model that could teach",
        "kava:embedded",
    ),
    "skip": (
        "plain",
        ("explicit.layer_map=skip", "model.name={wide}"),
        ModelError,
        "skip needs a teacher of at least as many layers",
        "ratio",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_that_does_not_fit_is_refused_with_advice(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    teacher, settings, kind, message, hint = REFUSED[name]
    named = [setting.format(**bases) for setting in settings]
    student = [] if any(one.startswith("model.name") for one in named) else [f"model.name={bases['plain']}"]
    taught_by = [] if any(one.startswith("teacher.name") for one in named) else [f"teacher.name={bases[teacher]}"]
    with pytest.raises(kind, match=message) as caught:
        train(recipe_for(*student, *taught_by, *named), tmp_path / "run", quiet=True)
    assert hint in (caught.value.hint or "")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_codi_between_widths_is_possible_with_a_map_alone(bases: dict[str, Path], tmp_path: Path) -> None:
    few = ("training.max_steps=1", "loss.alpha2_kv=0", "loss.alpha1_codi=1", "projector.direction=student_to_teacher")
    train(
        recipe_for(f"model.name={bases['plain']}", f"teacher.name={bases['wide']}", *few), tmp_path / "run", quiet=True
    )
    assert load_file(tmp_path / "run" / "checkpoint-step1" / FILE).keys() == {
        f"aux_terms.codi.project.{part}" for part in ("weight", "bias")
    }


def test_data_without_a_chain_of_thought_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [one for one in SETTINGS if not one.startswith("dataset.")]
    recipe = load_recipe(
        "explicit_embedded", [*settings, f"dataset.name={tmp_path / 'train.jsonl'}", "dataset.val_size=2"]
    )
    with pytest.raises(DataError, match=r"no example of .* has text between question and final answer") as caught:
        train(recipe, tmp_path / "run", quiet=True)
    assert "#### number" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("latent.num_tokens=4", "the explicit line has no latents"),
        ("explicit.aggregation=mean", "layers are compared one by one"),
        ("projector.direction=none projector.init=normal", "nothing is projected"),
        ("projector.dropout=0.2", "only teacher_to_student"),
        ("rkv.method=full explicit.target_len=9", "full keeps every entry"),
        ("loss.alpha2_kv=0 loss.alpha1_codi=1 rkv.lambda=0.5", "the key/value term is off"),
        (
            "loss.alpha2_kv=0 loss.alpha1_codi=1 projector.mlp_ratio=2",
            "the key/value term is off|only teacher_to_student",
        ),
        ("explicit.form=aggregated explicit.layer_map=skip", "no layer is compared"),
        ("loss.kv_loss_type=cosine loss.layerwise_std=false", "nothing is divided by a standard deviation"),
        ("loss.alpha2_kv=0 teacher.dtype=bfloat16", "no term needs a teacher"),
        ("explicit.enabled=false explicit.parts=k", "only the explicit line"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_for(*settings.split())


@pytest.mark.parametrize(
    "settings",
    [
        "explicit.form=aggregated loss.alpha1_codi=1 explicit.layer_map=uniform",
        "explicit.form=aggregated explicit.cka_weight=1 explicit.layer_map=uniform",
        "explicit.form=aggregated explicit.aggregation=weighted projector.direction=none projector.learning_rate=0.01",
        "loss.alpha2_kv=0 loss.alpha1_codi=1 projector.direction=student_to_teacher projector.learning_rate=0.01",
        "loss.kv_loss_type=cosine loss.alpha1_codi=1 loss.layerwise_std=false",
    ],
)
def test_a_setting_with_an_effect_is_not(settings: str) -> None:
    recipe_for(*settings.split())


def test_a_map_for_codi_alone_asks_for_no_choice_of_positions(tmp_path: Path) -> None:
    """Positions are chosen per head by default; where none are chosen, that is no reason to refuse a map."""
    sections = {
        "model": {"name": "kava:blank"},
        "dataset": {"name": "chains"},
        "explicit": {"enabled": True},
        "loss": {"alpha1_codi": 1, "alpha2_kv": 0},
        "projector": {"direction": "student_to_teacher"},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(sections))
    assert load_recipe(tmp_path / "own.yaml", []).explicit.choose == "head"
    sections["loss"] = {"alpha1_codi": 1}
    (tmp_path / "own.yaml").write_text(json.dumps(sections))
    with pytest.raises(ConfigError, match="compares head with head"):
        load_recipe(tmp_path / "own.yaml", [])


@pytest.mark.parametrize(("varies", "words"), [(0.05, "have collapsed"), (11.5, "projector.guard=band"), (1.4, "")])
def test_targets_that_have_collapsed_or_grown_are_warned_about(
    varies: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = {"target_variation": varies, "ce": 1.0}
    assert lines_module._warned(numbers) == numbers
    assert (words in caplog.text) if words else not caplog.text
