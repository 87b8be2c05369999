"""The command line: fast and light help, one clear line per mistake, exit codes, `kava config`."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

from kava.cli import main as cli
from kava.cli.common import OVERRIDES, parse_recipe_args
from kava.config import Recipe, list_recipes, load_recipe
from kava.errors import DataError

VERBS = [verb.name for verb in cli.VERBS]


@pytest.fixture
def kava(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Put a function in the place of `kava train`."""

    def install(function, **attributes) -> None:
        module = types.ModuleType("kava.cli.train")
        module.train = function
        for name, value in attributes.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "kava.cli.train", module)

    return install


def raising(error: BaseException):
    def train() -> None:
        raise error

    return train


# ---- help


def test_help_groups_the_verbs(kava):
    code, out, _ = kava("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in VERBS)
    assert [line for line in out.splitlines() if line in ("Train and use:", "Measure:", "Recipes and data:")]
    assert out.isascii()
    assert kava()[1] == out


def test_help_imports_nothing_heavy():
    script = (
        "import sys, kava.cli.main as m\n"
        "m.main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pydantic', 'typer', 'rich'} & set(sys.modules)))\n"
        f"for verb in {VERBS!r}:\n"
        "    m.main([verb, '--help'])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lists = [line for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")]
    assert (lists[0], lists[-1]) == ("[]", "[]")
    assert done.stdout.isascii()


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_a_file_and_flags_with_underscores(name: str, kava):
    assert importlib.util.find_spec(f"kava.cli.{name}") is not None
    code, out, _ = kava(name, "--help")
    assert code == 0
    flags = [word for word in out.replace(",", " ").split() if word.startswith("--")]
    assert "--help" in flags
    assert not [flag for flag in flags if "-" in flag[2:].partition("=")[0]]


def test_version(kava):
    import kava as package

    assert kava("--version")[1] == f"kava {package.__version__}\n"


# ---- mistakes


def test_unknown_verb_and_flags_name_the_nearest(kava):
    assert kava("trian")[0::2] == (2, "error: unknown verb 'trian'\n  hint: did you mean 'train'?\n")
    assert "'--version'" in kava("--versoin")[2]
    code, out, err = kava("config", "--lst")
    assert (code, out) == (2, "")
    assert err == "error: unknown flag '--lst'\n  hint: did you mean '--list'?\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("train.jsonl line 3: no field 'answer'", "add it"), 2, "error: train.jsonl line 3"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/model.bin"),
            2,
            "error: the disk is full: out/model.bin",
        ),
        (RuntimeError("file write failed: No space left on device"), 2, "error: the disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), 2, "error: a file could not be written"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "error: not allowed: out"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_end_as_one_message_and_a_code(kava, verb, error, code: int, text: str):
    verb(raising(error))
    got, out, err = kava("train")
    assert (got, out) == (code, "")
    assert err.startswith(text)
    assert "Traceback" not in err


def test_a_fault_of_ours_keeps_its_traceback(kava, verb):
    verb(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        kava("train")


def test_a_verbs_number_is_the_exit_code(kava, verb):
    def train() -> int:
        return 1

    verb(train)
    assert kava("train")[0] == 1


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f'"{sys.executable}" -m kava config --keys | head -1', shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_any_code_page_survives(encoding: str, tmp_path: Path):
    (tmp_path / "my.yaml").write_text("about: {title: caf\u00e9 \u2713}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "kava", "config", "--get", str(tmp_path / "my.yaml")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u2713" in done.stdout


# ---- flags and settings


def test_dashes_in_flag_names_only():
    words = ["--output-dir", "a-b", "--eval-steps=c-d", "x-y=1", "--", "--as-is"]
    assert cli.underscores(words) == ["--output_dir", "a-b", "--eval_steps=c-d", "x-y=1", "--", "--as-is"]


def test_settings_reach_the_recipe(kava, verb):
    seen: list[Recipe] = []

    def train(ctx: typer.Context, config: Annotated[str, typer.Option()], seed: int = 0, output_dir: str = "") -> None:
        seen.append(parse_recipe_args(config, ctx, f"system.seed={seed}", None))

    verb(train, CONTEXT=OVERRIDES)
    words = ["--config", "debug", "training.batch_size=4", "--loss.alpha2_kv", "0.5", "--seed", "7", "--lora-enabled=1"]
    assert kava("train", *words)[0] == 2
    code, _, err = kava("train", *words[:-1], "--output-dir", "a-b", "--dataset.generator.max-steps=2")
    assert (code, err) == (0, "")
    (recipe,) = seen
    assert (recipe.training.batch_size, recipe.loss.alpha2_kv, recipe.system.seed) == (4, 0.5, 7)
    assert recipe.dataset.generator.max_steps == 2
    assert "unknown flag '--output_dri'" in kava("train", "--config", "debug", "--output-dri", "x")[2]
    assert "did you mean '--output_dir'?" in kava("train", "--config", "debug", "--output-dri", "x")[2]
    assert "system.seed is set twice" in kava("train", "--config", "debug", "--system.seed=3")[2]
    assert "flags start with two dashes" in kava("train", "--config", "debug", "-x")[2]
    assert "missing option '--config'" in kava("train")[2]


# ---- kava config


def test_list_and_filters(kava):
    out = kava("config", "--list")[1]
    assert all(name in out for name in ("llama1b_aug", "qwen05b_aug_nl", "embedded", "debug"))
    assert kava("config")[1] == out
    found = json.loads(kava("config", "--list", "--filter-size", "0.5b", "--filter-dataset", "aug-nl", "--quiet")[1])
    assert [entry["name"] for entry in found] == ["qwen05b_aug_nl"]
    assert {e["size"] for e in json.loads(kava("config", "--quiet")[1])} == {
        "1b",
        "0.5b",
        "3b",
        "7b",
        "embedded",
        "long_chains",
        "blank",
    }
    assert "training.weight_decay" in kava("config", "--list", "--verbose")[1]
    assert "known: 0.5b, 1b, 3b, 7b, blank, embedded, long_chains" in kava("config", "--filter_size", "8b")[2]


def test_get_shows_every_value_with_its_tag(kava):
    out = kava("config", "--get", "qwen05b_aug", "training.batch_size=64")[1]
    lines = {line.split()[0]: line for line in out.splitlines() if "." in line.partition(" ")[0]}
    assert lines["training.batch_size"].split()[1:4] == ["64", "ours", "command"]
    assert lines["training.weight_decay"].split()[1:4] == ["0.01", "noted", "qwen05b_aug.yaml"]
    data = json.loads(kava("config", "--get", "qwen05b_aug", "--quiet")[1])
    assert data["values"]["training.warmup_ratio"]["tag"] == "open"


def test_compare_shows_only_differences(kava):
    data = json.loads(kava("config", "--compare", "llama3b_aug", "llama3b_aug_nl", "--quiet")[1])
    assert set(data) == {"dataset.name", "dataset.cot_type", "loss.use_projection", "rkv.lambda"}
    out = kava("config", "--compare", "llama3b_aug", "llama3b_aug_nl")[1]
    assert "0.1 [noted]" in out
    assert "no difference" in kava("config", "--compare", "debug", "debug")[1]


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_exported_files_are_recipes(kava, tmp_path: Path, kind: str):
    folder = tmp_path / "back up"
    assert kava("config", "--export", str(folder), "--format", kind)[0] == 0
    assert sorted(path.stem for path in folder.iterdir()) == list_recipes()
    for path in folder.iterdir():
        assert load_recipe(path) == load_recipe(path.stem)
    assert kava("config", "--export", str(folder), "--format", kind)[0] == 0
    code, _, err = kava("config", "--get", "debug", "lora.enabled=true", "--export", str(folder), "--format", kind)
    assert code == 2
    assert "kava did not write it" in err


def test_keys_lists_everything(kava):
    data = json.loads(kava("config", "--keys", "--quiet")[1])
    assert data["latent.num_tokens"]["default"] == 24
    assert data["rkv.lambda"]["allowed"] == "a number >= 0 and <= 1"
    assert all(entry["meaning"] for entry in data.values())


@pytest.mark.parametrize(
    "words",
    [
        ["--get", "debug", "--list"],
        ["--keys", "--filter_size", "1b"],
        ["--keys", "--verbose"],
        ["--list", "--format", "yaml"],
        ["--list", "training.batch_size=3"],
        ["--get", "debgu"],
        ["--get"],
        ["--format", "xml", "--export", "x"],
    ],
)
def test_config_refuses_what_makes_no_sense(kava, words: list[str]):
    code, out, err = kava("config", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "hint: " in err
