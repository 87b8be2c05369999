"""`kava smoke multi-teacher`: every module of the mixture, a line each; a planted defect is named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.fuse.routers import Router
from kava.lab.selfcheck import multi_teacher
from kava.lab.selfcheck.multi_teacher import COMPONENTS

PHASES = [f"phase{number}" for number in (1, 2, 3, 4, 5)]
LIGHT = [name for name in COMPONENTS if name not in ("extraction", *PHASES)]
MODULES = {  # five alignments, three fusions, three routers, the entropy term and the prototypes of the guide
    *("tokens", "time", "layers", "heads", "rope", "fuse_fixed", "fuse_similarity", "fuse_learnable"),
    *("router_mlp", "router_gate", "router_attention", "entropy", "proto_mean", "proto_cls", "proto_kmeans", "codes"),
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made: nothing may be left in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_trains_nothing_is_well(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "multi-teacher", "--only", *LIGHT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in LIGHT]
    assert lines[-1].startswith(f"{len(LIGHT)} components, all well, ")
    assert all(line.isascii() for line in lines)
    assert list(folders.iterdir()) == []


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "multi_teacher", "--list", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == [*LIGHT, "extraction", *PHASES]
    assert set(LIGHT) >= MODULES
    assert main(["smoke", "multi-teacher", "--only", "tokenz"]) == 2
    assert "did you mean 'tokens'?" in capsys.readouterr().err
    assert main(["smoke", "teachers"]) == 2
    assert "multi-teacher" in capsys.readouterr().err


def test_a_defect_in_a_module_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys that are not un-rotated, padding read into a prototype, a router that nothing trains."""
    monkeypatch.setattr(multi_teacher, "unrotate", lambda keys, cos, sin: keys)
    compute = multi_teacher.compute_teacher_prototype
    monkeypatch.setattr(
        multi_teacher, "compute_teacher_prototype", lambda kvs, how, _, **more: compute(kvs, how, **more)
    )
    scores = Router.scores
    monkeypatch.setattr(Router, "scores", lambda self, query: scores(self, query).detach())
    wrong = ["rope", "proto_mean"]
    assert main(["smoke", "multi-teacher", "--only", *wrong, "entropy"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [*(["FAIL", name] for name in wrong), ["ok", "entropy"]]
    assert all("off by" in line for line in lines[:2])
    assert main(["smoke", "multi-teacher", "--only", "router_mlp"]) == 1


@pytest.mark.long
def test_everything_is_well(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["smoke", "multi-teacher", "--quiet"])
    result = json.loads(capsys.readouterr().out)
    assert [component for component in result["components"] if component["status"] == "FAIL"] == []
    assert code == 0
    assert list(folders.iterdir()) == []
