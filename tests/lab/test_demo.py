"""The demo's numbers and its run."""

from __future__ import annotations

import json

import pytest

from kava.cli.main import main
from kava.lab.analysis.stats import McNemarTest
from kava.lab.demo import plot, table, verdict

ROWS = [
    {"name": "explicit", "by_steps": {1: {"correct": 3, "total": 4}, 2: {"correct": 5, "total": 10}},
     "avg_forward_passes": 20.0, "ms": 31.25},
    {"name": "latent", "by_steps": {1: {"correct": 4, "total": 4}, 2: {"correct": 1, "total": 10}},
     "avg_forward_passes": 5.0, "ms": 9.5},
]  # fmt: skip


def test_the_table_shows_percent_counts_and_passes():
    lines = table(ROWS).splitlines()
    assert lines[0].split() == ["model", "1", "step", "2", "steps", "passes", "ms/question"]
    assert lines[2].split() == ["explicit", "75.0", "%", "50.0", "%", "20.0", "31.2"]
    assert lines[3].split() == ["latent", "100.0", "%", "10.0", "%", "5.0", "9.5"]
    assert lines[-1].split() == ["problems", "4", "10"]


@pytest.mark.parametrize(
    ("paired", "word"),
    [
        (McNemarTest(30, 2, 1e-6), "better"),
        (McNemarTest(2, 30, 1e-6), "worse"),
        (McNemarTest(9, 5, 0.4), "no significant difference"),
    ],
)
def test_the_verdict_follows_the_test(paired, word):
    assert f"problems: {word} (" in verdict("a", "b", 3, paired)


def test_the_plot_is_a_picture(tmp_path):
    plot(ROWS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_demo_runs_end_to_end_and_again(tmp_path, capsys):
    words = ["demo", "--config", "debug", "--output_dir", str(tmp_path), "--quiet"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][0]["name"] == "explicit chain of thought"
    assert {"table.txt", "result.json", "plot.png"} <= {path.name for path in tmp_path.iterdir()}
    made = (tmp_path / "kava" / "seed_42" / "best_checkpoint" / "trained.safetensors").stat().st_mtime_ns
    assert main(words) == 0  # nothing is trained twice
    assert (tmp_path / "kava" / "seed_42" / "best_checkpoint" / "trained.safetensors").stat().st_mtime_ns == made
