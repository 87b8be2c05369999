"""Names of models that are no models: refused before a library takes a path for a name of the hub."""

import json
import shutil
from pathlib import Path

import pytest

from kava.backbone.artifact import load_student
from kava.backbone.load import SHIPPED, load_config, load_tokenizer, locate, locate_tokenizer
from kava.config import ModelConfig, load_recipe, save_recipe
from kava.errors import ConfigError, ModelError
from kava.files import write_json
from kava.training.arguments import training_arguments

NESTED = "[" * 100_000


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("empty", "other", "student", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for name in ("student/kava.json", "student/config.json", "bare/config.json"):
        write_json(tmp_path / name, {"model_type": "gpt2"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("/nope", "model '/nope': no such folder", "config.json, weights and tokenizer"),
        ("./nope", "no such folder", "config.json"),
        ("a/b/c", "no such folder", "config.json"),
        ("empty", "model 'empty': the folder is empty", "config.json"),
        ("other", "the folder has no config.json", "config.json"),
        ("other/notes.txt", "a file, not a folder", "config.json"),
        ("x" * 5000, "xxx': File name too long", "config.json"),
        ("org/" + "x" * 5000, "xxx': File name too long", "config.json"),
        ("student", "is a student of kava", "training.start_from=student"),
    ],
)
def test_a_path_that_is_no_model_is_refused(folders: Path, name: str, message: str, hint: str) -> None:
    with pytest.raises(ModelError) as error:
        locate(name)
    assert message in error.value.message
    assert hint in str(error.value.hint)


@pytest.mark.parametrize("name", ["org/" + "x" * 5000, "~nobody_of_this_name/model"])
def test_so_is_a_tokenizer_of_an_impossible_name(name: str) -> None:
    with pytest.raises(ModelError, match=r"^model "):
        locate_tokenizer(name)


def test_names_of_the_hub_and_of_models_stay(folders: Path) -> None:
    assert locate("meta-llama/Llama-3.2-1B-Instruct") == "meta-llama/Llama-3.2-1B-Instruct"
    assert locate("bare") == "bare"
    with pytest.raises(ModelError, match=r"bare has no tokenizer, none of tokenizer\.json"):
        load_tokenizer("bare", ModelConfig(name="bare"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": 0}]}, "tokenizer.json is damaged: "),
        ("tokenizer.json", {"truncation": True}, "tokenizer.json is damaged: invalid type"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "x"}}, "tokenizer.json is damaged: "),
        ("tokenizer.json", NESTED, "tokenizer.json is "),
        ("tokenizer_config.json", NESTED, "tokenizer_config.json is nested too deeply"),
        ("config.json", NESTED, "config.json is nested too deeply"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(
    tmp_path: Path, file: str, content: str | dict[str, object], message: str
) -> None:
    path = tmp_path / "model" / file
    shutil.copytree(SHIPPED["kava:embedded"], path.parent)
    text = content if isinstance(content, str) else json.dumps(json.loads(path.read_text("utf-8")) | content)
    path.write_text(text, "utf-8")
    with pytest.raises(ModelError) as error:
        load_tokenizer(tmp_path / "model", ModelConfig(name="model"))
    assert message in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("name", ["n_layer", "num_hidden_layers", "vocab_size", "n_embd", "head_dim", "n_positions"])
def test_sizes_beyond_every_model_are_found_before_anything_is_built(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model" / "config.json"
    shutil.copytree(SHIPPED["kava:embedded"], path.parent)
    settings = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(settings | {name: 10**30}), "utf-8")
    with pytest.raises(
        ModelError, match=rf"^{path}: {name}: 1000000000000000000000000000000 is a number: no model has"
    ):
        load_config(ModelConfig(name=str(path.parent)))
    path.write_text(json.dumps(settings | {"text_config": {name: 10**30}}), "utf-8")
    with pytest.raises(ModelError, match=rf"text_config\.{name}: "):
        load_tokenizer(path.parent, ModelConfig(name=str(path.parent)))


def test_a_base_that_was_moved_names_the_flag_and_one_without_effect_is_refused(folders: Path) -> None:
    student = folders / "lora"
    student.mkdir()
    write_json(student / "kava.json", {"format": 1, "method": "latent", "trained": [], "frozen_fingerprint": "x"})
    save_recipe(load_recipe("debug", ["lora.enabled=true", "model.name=/moved/base"]), student / "recipe.yaml")
    with pytest.raises(ModelError, match="no such folder") as error:
        load_student(student)
    assert "--base FOLDER" in str(error.value.hint)
    save_recipe(load_recipe("debug"), student / "recipe.yaml")
    with pytest.raises(ConfigError, match="'/nope' has no effect"):
        load_student(student, base="/nope")


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    """transformers computes in float32 there, and says nothing."""
    recipe = load_recipe("debug", ["system.mixed_precision=fp16", "system.device=cpu", "logging.report_to=[]"])
    with pytest.raises(ConfigError, match="needs a GPU") as error:
        training_arguments(recipe, tmp_path)
    assert "mixed_precision=bf16" in str(error.value.hint)
