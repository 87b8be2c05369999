"""`kava smoke`: a line per component, the others run when one fails, and the exit code says it."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.lab.selfcheck import runs as smoke_runs
from kava.lab.selfcheck.context import Place, Skipped, expect

FEW = ["recipes", "answers", "special_tokens", "compressors", "losses"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made: nothing may be left in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def put(monkeypatch: pytest.MonkeyPatch, name: str, component) -> None:
    monkeypatch.setitem(smoke_runs.COMPONENTS, name, component)


def test_a_few_components_are_well(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--only", *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in FEW]
    assert lines[-1].startswith("5 components, all well, ")
    assert all(line.isascii() and line.endswith(" s") for line in lines)
    assert list(folders.iterdir()) == []


def test_a_broken_component_stops_no_other(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(place: Place) -> str:
        print("noise")
        (place.folder / "left").write_text("behind")
        raise ZeroDivisionError("caf\u00e9\nand more")

    put(monkeypatch, "latents", broken)
    put(monkeypatch, "losses", lambda _: expect(False, "nothing learns"))
    put(monkeypatch, "packed", lambda _: (_ for _ in ()).throw(Skipped("no such thing")))
    chosen = ["latents", "losses", "packed", "answers"]
    assert main(["smoke", "--only", *chosen]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL latents        ZeroDivisionError: caf\\xe9 and more, ")
    assert lines[1].startswith("FAIL losses         AssertionError: nothing learns, ")
    assert lines[2].startswith("skip packed         no such thing, ")
    assert lines[3].startswith("ok   answers ")
    assert lines[4].startswith("4 components, FAILED: latents, losses, ")
    assert list(folders.iterdir()) == []
    assert main(["smoke", "--only", *chosen, "--quiet"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert [(one["name"], one["status"]) for one in result["components"]] == list(
        zip(chosen, ("FAIL", "FAIL", "skip", "ok"), strict=True)
    )


def test_a_defect_in_the_library_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kava.compress import Compressor
    from kava.objective import latent, packed

    monkeypatch.setattr(Compressor, "eligible", lambda self, mask, samples: mask | True)
    right = latent.kv_loss
    monkeypatch.setattr(latent, "kv_loss", lambda *given, **more: right(*given, **more).detach())
    place = packed.positions
    monkeypatch.setattr(packed, "positions", lambda mask, offset=None: place(mask))
    assert main(["smoke", "--only", "compressors", "losses", "packed"]) == 1
    out = capsys.readouterr().out
    assert "keeps padding" in out
    assert "kv has no gradient" in out
    assert "packed and the separate passes differ" in out


def test_without_torch_the_rest_is_still_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kava.lab.selfcheck.runs", None)  # what an import that fails looks like
    assert main(["smoke"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["environment", "recipes", "answers", "imports"]
    assert lines[3].startswith("FAIL imports        ModuleNotFoundError: ")


def test_ctrl_c_stops_everything(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Place) -> str:
        raise KeyboardInterrupt

    put(monkeypatch, "latents", interrupted)
    assert main(["smoke", "--only", "latents", "answers"]) == 130
    assert "answers" not in capsys.readouterr().out
    assert list(folders.iterdir()) == []


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--list", "--quiet"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert {"environment", "training", "resume", *FEW} <= set(names)
    assert main(["smoke", "--only", "compresors"]) == 2
    assert "did you mean 'compressors'?" in capsys.readouterr().err
    assert main(["smoke", "--device", "abacus"]) == 2


@pytest.mark.long
def test_everything_is_well_in_three_minutes(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Processor time of one core: the machine may have other things to do."""
    began = time.process_time()
    code = main(["smoke", "--quiet"])
    result = json.loads(capsys.readouterr().out)
    assert [one for one in result["components"] if one["status"] == "FAIL"] == []
    assert code == 0
    assert time.process_time() - began < 180
    assert list(folders.iterdir()) == []
