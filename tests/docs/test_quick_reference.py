"""docs/quick-reference.md, typed from the first row to the last in one folder: each command succeeds.

The machine is the downloaded hub in miniature of tests/hub.py. Commands that train for hours are stopped after two updates;
those of a scheduler are written out instead of submitted (tests/e2e/test_real_slurm.py submits).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

import hub
import processes
from kava.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quick-reference.md"
ELSEWHERE = {  # rows that another test runs
    "kava demo": "tests/lab/test_demo.py",
    "kava push": "tests/cli/test_push.py",
    "kava serve": "tests/serve/test_sockets.py",
    "kava bench serve": "tests/serve/test_sockets.py",
}
TWO_UPDATES = ("training.max_steps=2", "system.num_workers=0", "evaluation.max_new_tokens=8")
ADDED = {
    "kava train": TWO_UPDATES,
    "torchrun": TWO_UPDATES,
    "kava distill": TWO_UPDATES,
    "kava seeds": TWO_UPDATES,
    "kava suite": (*TWO_UPDATES, "dataset.generator.test_size=16", "--members", "E1_baseline", "E4_rkv"),
    "kava export": ("--check", "10"),  # as many questions as the miniature has
    "kava submit": ("--dry_run",),
}


def rows() -> list[str]:
    """Commands of the tables "to | type", in order."""
    commands = []
    for line in PAGE.read_text(encoding="utf-8").partition("## Variables")[0].splitlines():
        cells = line.strip("|").split(" | ")
        if line.startswith("| ") and len(cells) == 2:
            commands += re.findall(r"`((?:kava|torchrun) [^`]+)`", cells[1])
    return commands


def starting(command: str, table: dict) -> str | None:
    return next((start for start in table if command.startswith(start)), None)


TYPED = [command for command in rows() if starting(command, ELSEWHERE) is None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = hub.build(tmp_path_factory.mktemp("quick"))
    (place / "questions.txt").write_text("3+4?\nAnn has 2 apples and eats 1. How many are left?\n")
    return place


def test_the_page_has_rows_and_other_tests_run_the_rest() -> None:
    assert len(TYPED) > 40
    for start, test in ELSEWHERE.items():
        assert any(command.startswith(start) for command in rows()), start
        assert (PAGE.parents[1] / test).exists(), test


@pytest.mark.long
@pytest.mark.in_order
@pytest.mark.parametrize("command", TYPED)
def test_a_row(command: str, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    hub.enter(root, monkeypatch)
    start = starting(command, ADDED)
    words = [place for word in shlex.split(command) for place in (sorted(glob(word)) if "*" in word else [word])]
    words += () if start is None else ADDED[start]
    if words[0] == "torchrun":
        environment = {**processes.environment(), **hub.environment(root)}
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        assert subprocess.run(words, env=environment, timeout=600, check=False).returncode == 0
        return
    with open("/dev/null") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        code = main(words[1:])
    assert code == 0, capfd.readouterr().err[-2000:]
