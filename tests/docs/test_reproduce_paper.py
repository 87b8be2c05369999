"""runs/reproduce_paper.sh: every command that it prints parses, and one recipe runs twice on tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT
from test_cluster_pages import parse_line

import hub
from kava.config import list_recipes, load_recipe

SCRIPT = ROOT / "runs" / "reproduce_paper.sh"
ABLATIONS = sorted((ROOT / "runs" / "ablations").glob("*.yaml"))


def run(folder: Path, *words: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_parses_and_none_is_run(tmp_path: Path) -> None:
    printed = run(tmp_path, "--dry_run", "--ablations", KAVA="false")
    assert list(tmp_path.iterdir()) == []
    commented = re.findall(r"^# +(kava .*)$", SCRIPT.read_text(encoding="utf-8"), re.M)
    lines = [line for line in printed.splitlines() if not line.startswith("#")] + commented
    assert any(line.startswith("kava submit seeds") for line in lines)
    for line in lines:
        parse_line(line)
    configs = {shlex.split(line)[3] for line in lines if line.startswith("kava seeds --config")}
    paper = {name for name in list_recipes() if "Table 6" in load_recipe(name).about.source}
    assert configs == paper | {str(path) for path in ABLATIONS}


def test_the_ablations_are_those_of_the_paper() -> None:
    page = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8").partition("## 7.")[2].partition("## 8.")[0]
    rows = [re.findall(r"`([\w.]+=[^`]+)`", line) for line in page.splitlines()]
    wanted = [load_recipe("llama1b_aug", settings) for settings in rows if settings]
    made = [load_recipe(path) for path in ABLATIONS]
    assert len(made) == len(wanted) == 4
    for recipe in made:
        same = recipe.model_copy(update={"about": wanted[0].about})
        assert sum(same == other for other in wanted) == 1, recipe.about.name


def test_the_shell_has_no_complaint(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_one_recipe_from_assets_to_the_table_and_nothing_twice(tmp_path: Path) -> None:
    root = hub.build(tmp_path)
    words = ("llama1b_aug", "--", "--quick_test", "system.num_workers=0", "evaluation.max_new_tokens=4")
    variables = hub.environment(root) | {"SEEDS": "42 123", "KAVA": f"{shlex.quote(sys.executable)} -m kava"}
    run(root, *words, **variables)
    outputs = root / "outputs"
    result = json.loads((outputs / "llama1b_aug_multi_seed" / "aggregated_results.json").read_text())["llama1b_aug"]
    assert result["num_seeds"] == 2
    assert r"\begin{tabular}" in (outputs / "paper_tables.tex").read_text()
    for name in ("results.csv", "report.html"):
        assert (outputs / name).is_file()
    trained = {path: path.stat().st_mtime_ns for path in outputs.rglob("best_checkpoint/*")}
    answered = {path: path.stat().st_mtime_ns for path in outputs.rglob("predictions_*.jsonl")}
    assert len(answered) == 2 * 3 + 1  # with the swapped latents of the first seed
    run(root, *words, **variables)
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("best_checkpoint/*")} == trained
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("predictions_*.jsonl")} == answered
