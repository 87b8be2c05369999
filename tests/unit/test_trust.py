"""Code that comes with models, students and recipes runs only if the caller says so; no file can."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import kava
from hub import tiny_student, without_hashes
from kava import Student
from kava.backbone.load import build_model, load_foreign, load_plain, load_tokenizer
from kava.backbone.plain import load_exported
from kava.cli.main import main
from kava.config import ModelConfig, Recipe, TeacherSpec, load_recipe
from kava.config.trust import allow_code, code_allowed, requests, trusted
from kava.errors import CodeRefused, ConfigError, ModelError
from kava.teachers.store import StoredTeacher

EVIL = """from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import PreTrainedTokenizerFast
class EvilTok(PreTrainedTokenizerFast):
    pass
"""
GENERATE = """from pathlib import Path
Path({mark!r}).write_text("ran")
def generate(model, *arguments, **options):
    return None
"""
SMALL = ["training.max_steps=1", "dataset.generator.train_size=8", "training.batch_size=2", "system.num_workers=0",
         "training.gradient_accumulation_steps=1", "dataset.generator.val_size=2",
         "evaluation.max_new_tokens=2", "logging.report_to=[]"]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.mktemp("plain") / "best_checkpoint")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once the foreign code has run."""
    return tmp_path / "code_ran"


def with_own_tokenizer(folder: Path, mark: Path) -> None:
    """Code in the tokenizer of a model's folder."""
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.update(auto_map={"AutoTokenizer": [None, "evil.EvilTok"]}, tokenizer_class="EvilTok")
    path.write_text(json.dumps(settings), encoding="utf-8")


def with_own_generation(folder: Path, mark: Path) -> None:
    """Code in the place where an exported student has its generate.py."""
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(GENERATE.format(mark=str(mark)), encoding="utf-8")


def edit(folder: Path, before: str, after: str) -> None:
    path = folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


@pytest.fixture
def evil(plain: Path, tmp_path: Path, mark: Path) -> Path:
    """A student that gives itself the trust; of a version without hashes, so that nothing else refuses it."""
    folder = Path(shutil.copytree(plain, tmp_path / "evil"))
    with_own_tokenizer(folder, mark)
    edit(folder, "trust_remote_code: false", "trust_remote_code: true")
    return without_hashes(folder)


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["infer", "evaluate", "selection", "bench"])
def test_a_student_cannot_trust_itself(
    evil: Path, mark: Path, verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = {
        "infer": ["infer", "--questions", "3+4?"],
        "evaluate": ["evaluate", "--dataset", "chains", "--limit", "2", "--output", str(tmp_path / "o.yaml")],
        "selection": ["selection", "--output", str(tmp_path / "kept.json")],
        "bench": ["bench", "latent", "--dataset", "chains", "--questions", "2"],
    }
    message = error_of(capsys, *words[verb], "--checkpoint", str(evil))
    assert "recipe.yaml: model.trust_remote_code = true" in message
    assert "--trust_remote_code" in message
    assert not mark.exists()


def test_the_caller_can(evil: Path, mark: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError, match="which a file cannot allow"):
        Student.from_pretrained(evil, "cpu")
    with pytest.raises(ConfigError, match="which a file cannot allow"):
        kava.evaluate(evil, "chains", limit=1, output=evil.parent / "o.yaml", quiet=True)
    assert not mark.exists()
    words = ["infer", "--checkpoint", str(evil), "--questions", "3+4?", "--max_new_tokens", "2"]
    with caplog.at_level(logging.WARNING, logger="kava"):
        assert main([*words, "--trust_remote_code"]) == 0
    assert mark.exists()
    assert "may run code of its own, as you allowed" in caplog.text
    assert main(words) == 2  # the permission of one command line is gone with it


def test_a_class_named_in_a_students_recipe_is_not_imported(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "student"))
    edit(folder, "method: steps", "method: evil_module:Compressor")
    without_hashes(folder)
    with pytest.raises(ConfigError, match=r"rkv\.method = evil_module:Compressor"):
        Student.from_pretrained(folder, "cpu")
    assert Student.from_pretrained(folder, "cpu", trust_remote_code=True).recipe.rkv.method == "evil_module:Compressor"
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("verb", ["train", "extract", "data", "seeds", "suite", "assets", "distill"])
def test_a_recipe_file_only_asks(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parent = "explicit_embedded" if verb in ("distill", "extract") else "debug"
    Path("dl.yaml").write_text(f"extends: {parent}\nmodel: {{trust_remote_code: true}}\n", encoding="utf-8")
    words = {
        "train": ["train", "--config", "dl.yaml"],
        "extract": ["extract", "--config", "dl.yaml", "--output_dir", "store"],
        "data": ["data", "check", "chains", "--config", "dl.yaml"],
        "seeds": ["seeds", "--config", "dl.yaml", "--seeds", "1"],
        "suite": ["suite", "e1-e5", "--config", "dl.yaml", "--seeds", "1"],
        "assets": ["assets", "verify", "--config", "dl.yaml"],
        "distill": ["distill", "--config", "dl.yaml"],
    }
    message = error_of(capsys, *words[verb])
    assert "dl.yaml: model.trust_remote_code = true asks to run code" in message


def test_what_the_caller_grants() -> None:
    typed = load_recipe("debug", ["model.trust_remote_code=true"])
    assert trusted(typed) is typed
    assert trusted(Recipe(model=ModelConfig(trust_remote_code=True))).model.trust_remote_code  # made in Python
    granted = trusted(load_recipe("explicit_embedded"), trust_remote_code=True)
    assert set(requests(granted)) == {"model.trust_remote_code", "teacher.trust_remote_code"}
    assert trusted(granted) is granted
    plain = load_recipe("debug")
    assert trusted(plain) is plain
    assert not requests(plain, stored=True)


def test_typed_trust_is_for_the_model_it_is_typed_for(tmp_path: Path) -> None:
    path = tmp_path / "dl.yaml"
    path.write_text("extends: explicit_embedded\nteacher: {name: some/teacher, trust_remote_code: true}\n")
    with pytest.raises(ConfigError, match=r"teacher\.trust_remote_code"):
        trusted(load_recipe(path, ["model.trust_remote_code=true"]))
    trusted(load_recipe(path, ["teacher.trust_remote_code=true"]))  # the file says it, and so does the caller
    teachers = "mixture: {teachers: [{model: a/b, trust_remote_code: true}]}"
    path.write_text(f"extends: explicit_embedded\nprojector: {{direction: none}}\n{teachers}\n")
    with pytest.raises(ConfigError, match=r"mixture\.teachers"):
        kava.train(path, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"mixture\.teachers"):
        kava.distill(path, tmp_path / "run")


def test_a_class_named_in_a_teacher_store_is_not_imported() -> None:
    store = StoredTeacher(Path(__file__).parents[1] / "fixtures" / "teacher_store")
    store.manifest = replace(store.manifest, method="evil_module:Compressor", target_len=4)
    with pytest.raises(ConfigError, match="columns chosen by evil_module:Compressor, the recipe asks for"):
        store.check_recipe(load_recipe("explicit_embedded", ["explicit.choose=sample"]))
    assert "evil_module" not in sys.modules


def test_no_way_to_a_model_is_open_by_itself(plain: Path, tmp_path: Path, mark: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "base"))
    with_own_tokenizer(folder, mark)
    with pytest.raises(ModelError, match="only the caller can allow"):
        load_tokenizer(folder, ModelConfig(name=str(folder), trust_remote_code=True))
    assert not mark.exists()


def test_a_tokenizer_with_a_class_of_its_own_is_not_read_by_another(plain: Path, tmp_path: Path, mark: Path) -> None:
    """As a model whose family transformers does not know; one that it knows is read by its class, as a model is."""
    folder = Path(shutil.copytree(plain, tmp_path / "base"))
    with_own_tokenizer(folder, mark)
    with pytest.raises(CodeRefused, match="comes with code of its own, which is not run unasked"):
        load_tokenizer(folder, ModelConfig(name=str(folder)))
    path = folder / "tokenizer_config.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"EvilTok"', '"PreTrainedTokenizerFast"'), encoding="utf-8"
    )
    assert load_tokenizer(folder, ModelConfig(name=str(folder))).is_fast
    assert not mark.exists()


def test_a_base_with_code_is_trained_on_request(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / "base", tmp_path / "base"))
    with_own_tokenizer(base, mark)
    words = ["train", "--config", "debug", f"model.name={base}", *SMALL, "--output_dir", "run", "--quiet"]
    assert main([*words, "--trust_remote_code"]) == 0
    assert mark.exists()
    assert load_recipe("run/recipe.yaml").model.trust_remote_code  # so that its student asks, too
    mark.unlink()
    ask = ["infer", "--checkpoint", "run/best_checkpoint", "--questions", "1+1?"]
    assert "only" in error_of(capsys, *ask) or "cannot allow" in error_of(capsys, *ask)
    assert not mark.exists()


def test_allowing_ends_with_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import kava.cli.main as cli
    from kava.config import trust

    monkeypatch.setattr(cli, "_dispatch", lambda words: allow_code() or 0)
    assert main(["anything"]) == 0
    assert not trust._allowed.get()


@pytest.mark.parametrize("allowed", [False, True])
def test_generate_py_is_never_run(tmp_path: Path, mark: Path, allowed: bool) -> None:
    """transformers 4.57 runs it on loading a local folder whatever the caller says, 5 where code is allowed."""
    base = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / "base", tmp_path / "base"))
    with_own_generation(base, mark)
    recipe = load_recipe("debug").changed("model", name=str(base), trust_remote_code=allowed)
    with code_allowed(allowed):
        models = [
            load_plain(recipe.model, torch.float32),
            load_exported(base),
            load_foreign(TeacherSpec(model=str(base), trust_remote_code=allowed), recipe.model, torch.device("cpu")),
            build_model(recipe)[0].backbone,
        ]
    assert not mark.exists()
    assert not any("generate" in vars(module) for model in models for module in model.modules())
    AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)  # the library's own users have it as ever
    assert mark.exists()


def test_an_exported_student_is_a_base_like_any_other(plain: Path, tmp_path: Path, mark: Path) -> None:
    base, run = tmp_path / "exported", tmp_path / "run"
    assert main(["export", str(plain), str(base), "--quiet"]) == 0
    with_own_generation(base, mark)
    words = ["train", "--config", "debug", f"model.name={base}", *SMALL, "--output_dir", str(run), "--quiet"]
    assert main(words) == 0
    assert main(["infer", "--checkpoint", str(run / "best_checkpoint"), "--questions", "3+4?", "--quiet"]) == 0
    assert not mark.exists()
