"""What only a process of its own shows: closed or broken streams, bytes on the command line, another locale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KAVA = f'"{sys.executable}" -m kava '
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
GET = "config --get debug "


def shell(line: str, folder: Path, **variables: str) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a kava command in bash, which knows <&- and $'\\xff'."""
    done = subprocess.run(["bash", "-c", KAVA + line], cwd=folder, env={**os.environ, **variables}, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def refused(outcome: tuple[int, bytes, bytes], words: bytes) -> None:
    """It ended with 2 and one error that says this."""
    code, out, err = outcome
    assert (code, out) == (2, b""), err
    assert err.startswith(b"error: "), err
    assert words in err, err
    assert len(err.splitlines()) <= 3, err


def test_closed_streams(tmp_path: Path):
    refused(shell("config --list >&-", tmp_path), b"standard output is closed")
    code, out, err = shell(GET + "<&- 2>&-", tmp_path)
    assert (code, err) == (0, b"")
    assert b"training.batch_size" in out


def test_streams_that_take_nothing(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    refused(shell("config --list >/dev/full", tmp_path), b"disk is full")
    assert shell("config --get nothing 2>/dev/full", tmp_path) == (2, b"", b"")


def test_bytes_that_are_no_text(tmp_path: Path):
    refused(shell(GET + r"about.title=$'\xff\xfe'", tmp_path), rb"'about.title=\udcff\udcfe' is no text in utf-8")
    refused(shell("config --get \u4e2d.yaml", tmp_path, **ASCII), b"PYTHONUTF8=1")


@pytest.mark.long
def test_folders_and_streams_of_other_verbs(tmp_path: Path):
    fixtures = Path(__file__).parent.parent / "fixtures"
    place = tmp_path / "\u4e2d\u6587"
    for name in ("latent_student", "base"):
        shutil.copytree(fixtures / name, place / name)
    infer = "infer --checkpoint latent_student --device cpu "
    refused(shell(infer + "--questions 1+1?", place, **ASCII), b"PYTHONUTF8=1")
    refused(shell(infer + r"--questions $'\xff\xfe'", place), b"no text")
    assert shell(infer + "--questions 1+1? <&-", place)[0] == 0
    assert shell(infer + "<&-", place)[0] == 0
    line = f"mkdir gone && cd gone && rmdir ../gone && {KAVA}{GET}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False)
    refused((done.returncode, done.stdout, done.stderr), b"the current folder has been deleted")
    assert not list(place.rglob("*.partial*"))


@pytest.mark.long
@pytest.mark.parametrize(
    "line", [GET, "config --get nothing", "jobs folder", "data check nothing.jsonl", "--help", "x"]
)
def test_any_streams(line: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    usual = shell(line, tmp_path)[0]
    for stdin in ("", "<&-", "</dev/null", "0>/dev/null"):
        for stdout in (">/dev/null", ">&-", ">/dev/full"):
            for stderr in ("", "2>&-", "2>/dev/full"):
                code, out, err = shell(f"{line} {stdin} {stdout} {stderr}", tmp_path)
                assert code == (usual if stdout == ">/dev/null" else 2), (stdin, stdout, stderr, err)
                assert b"Traceback" not in out + err
