"""`kava smoke`: passes on a healthy install; a broken component is named, the others still run, and the exit code is 1."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.lab.selfcheck.components import COMPONENTS
from kava.lab.selfcheck.context import SelfCheckContext, Skipped, expect

FEW = ["environment", "recipes", "data", "packed"]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from kava.cli.main import main
sys.exit(main(["smoke", "--only", "environment", "recipes", "packed"]))
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made: nothing may be left in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_few_components_are_well(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--only", *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in FEW]
    assert lines[-1].startswith("4 components, all well, ")
    assert all(line.isascii() and line.endswith(" s") for line in lines)
    assert list(folders.iterdir()) == []


def test_a_broken_component_stops_no_other(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(context: SelfCheckContext) -> str:
        print("noise")
        (context.folder / "left").write_text("behind")
        raise ZeroDivisionError("caf\u00e9\nand more")

    monkeypatch.setitem(COMPONENTS, "data", broken)
    monkeypatch.setitem(COMPONENTS, "infer", lambda _: expect(False, "nothing learns"))
    monkeypatch.setitem(COMPONENTS, "report", lambda _: (_ for _ in ()).throw(Skipped("no such thing")))
    chosen = ["data", "infer", "report", "recipes"]
    assert main(["smoke", "--only", *chosen]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL data           ZeroDivisionError: caf\\xe9 and more, ")
    assert lines[1].startswith("FAIL infer          AssertionError: nothing learns, ")
    assert lines[2].startswith("skip report         no such thing, ")
    assert lines[3].startswith("ok   recipes ")
    assert lines[4].startswith("4 components, FAILED: data, infer, ")
    assert list(folders.iterdir()) == []
    assert main(["smoke", "--only", *chosen, "--quiet"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    statuses = [(component["name"], component["status"]) for component in result["components"]]
    assert statuses == list(zip(chosen, ("FAIL", "FAIL", "skip", "ok"), strict=True))


def test_a_defect_in_the_library_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kava.objective import targets

    right = targets.importance
    monkeypatch.setattr(targets, "importance", lambda *args: 1 - right(*args))
    assert main(["smoke", "--only", "packed"]) == 1
    out = capsys.readouterr().out
    assert "FAIL packed " in out
    assert "pccot: kv is " in out


def test_without_torch_the_rest_still_runs() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["FAIL", "environment"], ["ok", "recipes"], ["FAIL", "packed"]]
    assert "ModuleNotFoundError: " in lines[2]


def test_ctrl_c_stops_everything(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: SelfCheckContext) -> str:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMPONENTS, "data", interrupted)
    assert main(["smoke", "--only", "data", "recipes"]) == 130
    assert "recipes" not in capsys.readouterr().out
    assert list(folders.iterdir()) == []


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--list", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == list(COMPONENTS)
    former = ["answers", "compressors", "resume", "tables", "losses"]
    assert main(["smoke", "--list", "--quiet", "--only", *former, "explicit"]) == 0
    assert json.loads(capsys.readouterr().out) == ["evaluate", "packed", "training", "report", "explicit"]
    assert main(["smoke", "--only", "recipies"]) == 2
    assert "did you mean 'recipes'?" in capsys.readouterr().err
    assert main(["smoke", "--device", "abacus"]) == 2


@pytest.mark.long
def test_everything_is_well_in_three_minutes(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Processor time of one core: the machine may have other things to do."""
    began = time.process_time()
    code = main(["smoke", "--quiet"])
    result = json.loads(capsys.readouterr().out)
    assert [component for component in result["components"] if component["status"] == "FAIL"] == []
    assert code == 0
    assert time.process_time() - began < 180
    assert list(folders.iterdir()) == []
