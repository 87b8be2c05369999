"""Tab completion: what may follow a command line, the shells' scripts, and their installation."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kava.cli import completion
from kava.cli.completion import candidates
from kava.cli.main import main
from kava.cli.verbs import FLAGS, VERBS
from kava.config import KEYS, list_recipes


def values(line: str) -> set[str]:
    """The candidates for the last word of a command line."""
    *words, start = line.split(" ")
    return {entry.value for entry in candidates(words, start)}


def test_verbs_and_flags_of_kava() -> None:
    assert values("") == {verb.name for verb in VERBS}
    assert values("ev") == {"evaluate"}
    assert values("--") == set(FLAGS)
    assert values("--show_completion ") == set(completion.SHELLS)
    assert values("nonsense ") == set()


def test_flags_of_a_verb() -> None:
    assert {"--config", "--output_dir", "--resume", "--quiet", "--help"} <= values("train --")
    assert "--teacher_models" in values("distill --teach")
    assert values("data ") == {"check", "list", "redraw"}
    assert {"decode", "train"} <= values("bench ")
    assert "--repeats" in values("bench train --")


def test_values() -> None:
    assert values("train --config ") == set(list_recipes())
    assert values("config --compare embedded ll") == {name for name in list_recipes() if name.startswith("ll")}
    assert values("evaluate --mode ") == {"latent", "cot", "direct"}
    assert values("evaluate --mode latent ") == set()  # files
    assert values("infer --checkpoint ") == set()
    assert "rkv" in values("config --keys ")


def test_settings() -> None:
    assert values("train --config debug training.batch_s") == {"training.batch_size="}
    assert values("train --config debug --training.batch_s") == {"--training.batch_size"}
    assert {f"{key}=" for key in KEYS} <= values("train --config debug ")
    assert "latent.method=jacobi" in values("train latent.method=") or "rkv.method=crop" in values("train rkv.method=")
    assert "crop" in values("train rkv.method = c")  # as bash splits it
    assert values("train explicit.enabled=") == {"explicit.enabled=true", "explicit.enabled=false"}
    assert values("evaluate training.b") == set()  # it takes none


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_completes(verb: str) -> None:
    assert "--help" in values(f"{verb} --h")


def test_it_loads_no_torch_and_is_fast() -> None:
    code = (
        "import sys, time; from kava.cli.completion import candidates; began = time.process_time();"
        "candidates(['train', '--config', 'debug'], 'tr'); candidates(['evaluate'], '--');"
        "assert 'torch' not in sys.modules; print(time.process_time() - began)"
    )
    spent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(spent) < 2.0


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-completion", shell]) == 0
    out = capsys.readouterr().out
    assert "_KAVA_COMPLETE" in out
    assert "kava" in out


def test_installing_adds_one_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".bashrc").write_bytes(b"alias x=y  # \xff\n")
    for _ in range(2):
        assert main(["--install_completion", "bash"]) == 0
    script = tmp_path / ".bash_completions" / "kava.sh"
    assert script.is_file()
    rc = (tmp_path / ".bashrc").read_bytes()
    assert rc.startswith(b"alias x=y  # \xff\n")
    assert rc.count(b"source") == 1
    assert main(["--install_completion", "zsh"]) == 0
    assert main(["--install_completion", "fish"]) == 0
    assert (tmp_path / ".zfunc" / "_kava").is_file()
    assert (tmp_path / ".config" / "fish" / "completions" / "kava.fish").is_file()
    capsys.readouterr()
    for words, message in {
        ("--install_completion", "bsah"): "unknown shell 'bsah'",
        ("--install_completion", "bash", "zsh"): "unexpected 'zsh'",
        ("--install_completion", "powershell"): "profile is not changed",
    }.items():
        assert main(words) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    monkeypatch.delenv("PSModulePath", raising=False)
    assert main(["--install_completion"]) == 2
    assert "which shell" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_in_a_real_bash(tmp_path: Path) -> None:
    command = tmp_path / "kava"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kava "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "script").write_text(completion.script("bash"))

    def complete(*words: str) -> list[str]:
        listed = " ".join(f"'{word}'" for word in words)
        line = f"source '{tmp_path}/script'; COMP_WORDS=(kava {listed}); COMP_CWORD={len(words)}; "
        line += "compopt() { :; }; _kava_completion kava; printf '%s\\n' \"${COMPREPLY[@]}\""
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=True)
        assert time.monotonic() - began < 10
        return done.stdout.split()

    assert complete("sho") == ["show"]
    assert "llama1b_aug" in complete("train", "--config", "")
    assert complete("train", "training.batch_si") == ["training.batch_size="]
    assert complete("train", "rkv.method", "=", "cr") == ["crop"]
