"""examples/quickstart.ipynb runs from top to bottom, and is committed with its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from notebook import code_cells, run

PATH = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
FEW = {  # the settings that take the time, and the same on a few examples
    '"training.max_steps": 500': '"training.max_steps": 2, "dataset.generator.train_size": 64',
    '"logging.eval_steps": 100': '"logging.eval_steps": 1, "evaluation.max_new_tokens": 4',
    '"logging.logging_steps": 20': '"logging.logging_steps": 1',
    "limit=200": "limit=8",
}


def quick(text: str) -> str:
    for setting, few in FEW.items():
        text = text.replace(setting, few)
    return text


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code cells, with two updates in place of five hundred."""
    pytest.importorskip("matplotlib")
    texts = "".join(text for _, text in code_cells(NOTEBOOK))
    assert all(setting in texts for setting in FEW)
    monkeypatch.chdir(tmp_path)
    made = [[output["output_type"] for output in outputs] for outputs in run(NOTEBOOK, quick)]
    assert made == [[output["output_type"] for output in cell["outputs"]] for cell, _ in code_cells(NOTEBOOK)]


def test_it_is_committed_with_small_outputs() -> None:
    cells = [cell for cell, _ in code_cells(NOTEBOOK)]
    assert NOTEBOOK["nbformat"] == 4
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}
    assert PATH.stat().st_size < 100_000
    text = json.dumps(
        [cell["source"] for cell in NOTEBOOK["cells"]] + [c["outputs"] for c in cells if "image" not in c]
    )
    assert "/tmp" not in text


@pytest.mark.long
def test_in_full_the_student_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    run(NOTEBOOK)
    best = json.loads((tmp_path / "outputs" / "quickstart" / "meta.json").read_text())["best_accuracy"]
    assert best > 0.8  # chance is 0.2
