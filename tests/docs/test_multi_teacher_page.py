"""docs/multi-teacher.md: its commands parse, those that need no download run, and its keys, flags and files exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from test_from_the_guides import parse, quick

from kava.cli.distill_table import BY_NAME
from kava.cli.main import main
from kava.config import KEYS
from kava.training import mixture_setup as company

PAGE = Path(__file__).resolve().parents[2] / "docs" / "multi-teacher.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(line)
    assert program == "kava"
    parse(words)


def test_what_writes_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [words for words in map(shlex.split, LINES) if "align" in words or "--dry_run" in words]
    assert len(commands) == 2
    small = ["dataset.generator.train_size=16"]
    assert [main([*words[1:], *(small if "extract" in words else [])]) for words in commands] == [0, 0]
    assert list(tmp_path.iterdir()) == []


def test_its_first_run_writes_what_the_report_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = [words[1:] for words in map(shlex.split, LINES) if words[1] == "distill" and "outputs/routed" in words]
    assert main(quick(words) or []) == 0
    assert (tmp_path / "outputs" / "routed" / "routing.jsonl").is_file()


@pytest.mark.long
def test_a_run_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lines, with fewer updates, and the files that the page promises."""
    monkeypatch.chdir(tmp_path)
    commands = [words[1:] for words in map(shlex.split, LINES) if "outputs/routed" in words]
    assert [words[0] for words in commands] == ["distill", "report"]
    assert [main(quick(words) or []) for words in commands] == [0, 0]
    run = tmp_path / "outputs" / "routed"
    for name in re.findall(r"^\| `(\S+)` ", TEXT.partition("## Files of a run")[2].partition("\n## ")[0], re.MULTILINE):
        path = run / name
        assert path.is_file() or list(run.glob(f"*/{name}")), name
    held = [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "eval_kv" in line][-1]
    for key in re.findall(r"`(eval_\w+)`", TEXT):
        if "NAME" not in key:
            assert key in held, key


def test_every_key_of_the_section_is_there_and_no_other() -> None:
    named = set(re.findall(r"`(mixture\.\w+)[`:=]", TEXT))
    assert named == {key for key in KEYS if key.startswith("mixture.")}


def test_every_flag_is_one_of_distill() -> None:
    table = TEXT.partition("## Flags and keys")[2].partition("\n## ")[0]
    flags = re.findall(r"`--(\w+)`", table.partition("\n\n`kava")[0])
    assert len(flags) > 20
    assert [flag for flag in flags if flag not in BY_NAME] == []
    for flag, key in re.findall(r"^\| `--(\w+)` \| `([\w.]+)` \|", table, re.MULTILINE):
        sets = BY_NAME[flag].sets
        assert callable(sets) or key in (sets, BY_NAME[flag].mixture), flag


def test_the_files_are_those_that_a_run_writes() -> None:
    for name in (company.ALIGNMENT, company.ROUTING, company.LAYERS, company.SAMPLES):
        assert f"`{name}`" in TEXT
