"""model.gguf_file: what is read from a .gguf file is what was written; a student trained from it loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import zoo_tokenizers
from gguf_files import NAMES, write_gguf
from kava.backbone import gguf as reading
from kava.backbone.artifact import load_student, write_student
from kava.backbone.load import build_model, foreign_model, load_config, load_plain, load_tokenizer, spec_of
from kava.backbone.plain import save_plain
from kava.cli.main import main
from kava.config import ModelConfig, Recipe, TeacherSpec, load_recipe
from kava.data.hub import File, model_files
from kava.errors import ConfigError, ModelError
from kava.lab.assets import model_asset

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_theta": 10000.0}  # fmt: skip
FILE = "tiny-f32.gguf"


@pytest.fixture(scope="module")
def original() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    lm = Qwen2ForCausalLM(
        Qwen2Config(**SIZES, vocab_size=len(zoo_tokenizers.byte_level()), tie_word_embeddings=False)
    ).eval()
    for weight in lm.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return lm


@pytest.fixture(scope="module")
def folder(original: Qwen2ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a .gguf file. Skips without the package gguf."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(original, zoo_tokenizers.byte_level(), folder / FILE)
    return folder


@pytest.fixture
def other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of .gguf files that nobody opens; the package counts as installed."""
    monkeypatch.setattr(reading, "is_gguf_available", lambda: True)
    for name in ("a-q4.gguf", "b-q8.gguf", "c-00001-of-00002.gguf"):
        (tmp_path / name).touch()
    return tmp_path


def recipe(folder: Path, *settings: str) -> Recipe:
    return load_recipe("debug", [f"model.name={folder}", f"model.gguf_file={FILE}", *settings])


def test_logits_and_tokens_are_those_of_the_original(folder: Path, original: Qwen2ForCausalLM) -> None:
    model = ModelConfig(name=str(folder), gguf_file=FILE)
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(load_plain(model, torch.float32)(ids).logits, original(ids).logits)
    read, written = load_tokenizer(folder, model), zoo_tokenizers.byte_level()
    assert read.get_vocab() == {NAMES.get(token, token): i for token, i in written.get_vocab().items()}
    assert read.eos_token == NAMES["<eos>"]
    assert read("how many clips?")["input_ids"] == written("how many clips?")["input_ids"]
    assert load_config(model).num_key_value_heads == 2


@pytest.mark.parametrize("lora", ["true", "false"])
def test_a_student_is_saved_and_loads_again(folder: Path, tmp_path: Path, lora: str) -> None:
    """With LoRA the base comes from the .gguf file again; a student of all weights needs it no more."""
    made = recipe(folder, f"lora.enabled={lora}")
    model, tokenizer = build_model(made)
    write_student(model, tokenizer, made, tmp_path / "student")
    if lora == "false":
        (folder / FILE).rename(tmp_path / "away")
    try:
        again, _, _ = load_student(tmp_path / "student")
    finally:
        if lora == "false":
            (tmp_path / "away").rename(folder / FILE)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)
    save_plain(model, tokenizer, tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").is_file()


def test_a_file_without_all_weights_is_refused(
    folder: Path, original: Qwen2ForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = original.state_dict()
    rest = {name: weight for name, weight in weights.items() if "layers.1.mlp.up" not in name}
    monkeypatch.setattr(original, "state_dict", lambda: rest)
    write_gguf(original, zoo_tokenizers.byte_level(), tmp_path / FILE)
    with pytest.raises(ModelError, match=r"lacks 1 weights, the first is model.layers.1.mlp.up_proj.weight"):
        load_plain(ModelConfig(name=str(tmp_path), gguf_file=FILE), torch.float32)


def test_a_torn_file_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / FILE).read_bytes()
    for size in (0, 100, len(whole) - 1000):
        (tmp_path / FILE).write_bytes(whole[:size])
        assert main(["model", "check", str(tmp_path), "--gguf_file", FILE, "--full"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert FILE in lines[0]
        assert len(lines) <= 2


def test_model_check_reads_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kava.lab.selfcheck.model_check import run

    monkeypatch.setattr(run, "CHECKS", {"logits": run.CHECKS["logits"]})
    assert main(["model", "check", str(folder), "--gguf_file", FILE, "--full"]) == 0
    assert "supported: family qwen2" in capsys.readouterr().out
    assert model_asset(ModelConfig(name=str(folder), gguf_file=FILE), "student").check()["problem"] is None


# -- without the package -----------------------------------------------------------------------------------------------


def test_a_missing_package_is_named(
    other_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reading, "is_gguf_available", lambda: False)
    assert main(["model", "check", str(other_files), "--gguf_file", "a-q4.gguf"]) == 2
    assert "needs the package gguf" in (said := capsys.readouterr().err)
    assert "pip install gguf" in said


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("d.gguf", r"no d\.gguf; \.gguf files there: a-q4\.gguf, b-q8\.gguf, c-00001-of-00002\.gguf"),
        ("c-00001-of-00002.gguf", "one part of a split file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(other_files: Path, file: str, says: str) -> None:
    for load in (load_config, lambda model: load_plain(model, torch.float32)):
        with pytest.raises(ModelError, match=says):
            load(ModelConfig(name=str(other_files), gguf_file=file))
    assert model_asset(ModelConfig(name=str(other_files), gguf_file=file), "student").check()["problem"] is not None


def test_a_folder_of_gguf_files_alone_names_the_setting(other_files: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json, but \.gguf files: a-q4\.gguf") as error:
        load_config(ModelConfig(name=str(other_files)))
    assert "gguf_file=a-q4.gguf" in str(error.value.hint)
    with pytest.raises(ModelError, match=r"kava:embedded has no \.gguf files"):
        load_config(ModelConfig(gguf_file="a-q4.gguf"))


@pytest.mark.parametrize("name", ["model.safetensors", "/models/a.gguf", "../a.gguf"])
def test_a_setting_that_names_no_file_inside_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.gguf_file.*no \.gguf file inside"):
        load_recipe("debug", [f"model.gguf_file={name}"])


def test_a_flag_that_names_no_file_inside_is_refused(other_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "check", str(other_files), "--gguf_file", "a.bin"]) == 2
    assert capsys.readouterr().err.splitlines()[0].endswith("for example model-q8_0.gguf")


def test_teachers_have_files_of_their_own(other_files: Path) -> None:
    student = ModelConfig(name="org/student", gguf_file="q4.gguf")
    assert foreign_model(TeacherSpec(), student).gguf_file == "q4.gguf"
    assert foreign_model(TeacherSpec(gguf_file="q8.gguf"), student).gguf_file == "q8.gguf"
    assert foreign_model(TeacherSpec(model="org/teacher"), student).gguf_file is None
    made = load_recipe("explicit_embedded", ["teacher.name=org/teacher", "teacher.gguf_file=q8.gguf"])
    assert spec_of(made).gguf_file == "q8.gguf"
    with pytest.raises(ConfigError, match="cannot be quantised again"):
        reading.load_dequantised(student, "org/student", quantization_config="nf4")


def test_only_the_named_file_is_fetched() -> None:
    files = [File(name, 1) for name in ("config.json", "model.safetensors", "q4.gguf", "q8.gguf")]
    assert model_files(files, "q8.gguf") == [files[3]]
    assert model_files(files, "q2.gguf") == []
