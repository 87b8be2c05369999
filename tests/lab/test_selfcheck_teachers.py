"""`kava smoke multi-teacher`: every module of the mixture, a line each; a planted defect is named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kava.align import heads, pipeline
from kava.cli.main import main
from kava.fuse import fuse_kv, prototypes, router
from kava.lab.selfcheck import alignment as smoke_align
from kava.lab.selfcheck import fusion as smoke_fuse

LIGHT = [*smoke_align.COMPONENTS, *smoke_fuse.COMPONENTS]
PHASES = [f"phase{number}" for number in (1, 2, 3, 4, 5)]


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
    assert main(["smoke", "multi-teacher", "--only", "tokenz"]) == 2
    assert "did you mean 'tokens'?" in capsys.readouterr().err
    assert main(["smoke", "teachers"]) == 2
    assert "multi-teacher" in capsys.readouterr().err


def test_defects_are_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults of earlier code: absent teachers fused, heads left out, a random router, padding read, keys not un-rotated."""
    shares = fuse_kv.shares
    monkeypatch.setattr(fuse_kv, "shares", lambda weights, present=None: shares(weights))
    monkeypatch.setattr(heads, "overlap_map", lambda to, of: torch.eye(to, of))
    scores = router.LearnableRouter.scores

    def blind(self: router.LearnableRouter, query: Tensor) -> Tensor:
        return scores(self, torch.zeros_like(query))

    monkeypatch.setattr(router.LearnableRouter, "scores", blind)
    compute = prototypes.compute_teacher_prototype
    monkeypatch.setattr(smoke_fuse, "compute_teacher_prototype", lambda kvs, how, _, **more: compute(kvs, how, **more))
    monkeypatch.setattr(smoke_align, "unrotate", lambda keys, cos, sin: keys)
    monkeypatch.setattr(pipeline, "normalised", lambda iou: iou)
    wrong = ["fuse_fixed", "heads", "router_mlp", "proto_mean", "rope", "pipeline"]
    assert main(["smoke", "multi-teacher", "--only", *wrong, "entropy"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["FAIL"] * len(wrong) + ["ok"]
    told = (
        "off by",
        "a head is left out",
        "finds the teacher who knows for",
        "mean: off by",
        "turned back",
        "changed by",
    )
    for line, words in zip(lines, told, strict=False):
        assert words in line


@pytest.mark.long
def test_everything_is_well(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["smoke", "multi-teacher", "--quiet"])
    result = json.loads(capsys.readouterr().out)
    assert [one for one in result["components"] if one["status"] == "FAIL"] == []
    assert code == 0
    assert list(folders.iterdir()) == []
