"""The embedded path, and one with a filled cache, in a network namespace that has no network at all (unshare -rn)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hub

ALONE = ["unshare", "-rn"]
SMALL = ("training.max_steps=6", "logging.save_steps=3", "logging.eval_steps=3", "evaluation.max_new_tokens=8")
TINY = ("dataset.generator.train_size=64", "dataset.generator.val_size=8", "dataset.generator.test_size=16")


def can_be_alone() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not can_be_alone(), reason="unshare -rn does not work here: no user namespaces"),
]


class Node:
    """A working folder on a machine without a network; nothing says so but the missing network."""

    def __init__(self, folder: Path, **environment: str):
        switches = ("OFFLINE", "proxy", "PROXY", "HF_")
        plain = {name: value for name, value in os.environ.items() if not any(part in name for part in switches)}
        self.folder, self.environment = folder, {**plain, "HF_HOME": str(folder / "hf"), **environment}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*ALONE, sys.executable, "-m", *words]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def kava(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("kava", *words)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def test_there_is_no_network_in_there(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert subprocess.run([sys.executable, "-c", command], capture_output=True).returncode == 0
        assert subprocess.run([*ALONE, sys.executable, "-c", command], capture_output=True).returncode == 1


def test_the_embedded_path_runs_to_its_report(tmp_path: Path) -> None:
    node = Node(tmp_path)
    shutil.copy(Path(__file__).resolve().parents[2] / "data" / "sample_train.jsonl", tmp_path / "rows.jsonl")
    student, runs = "outputs/run/best_checkpoint", "outputs/latent"
    explicit = ["--config", "explicit_embedded", "--output_dir"]
    for words in (
        ["assets", "verify", "--config", "embedded", "explicit_embedded", "multi_teacher_embedded"],
        ["train", "--config", "debug", "--output_dir", "outputs/run", *TINY],
        ["evaluate", "--checkpoint", student],
        ["infer", "--checkpoint", student, "--questions", "3+4?"],
        ["train", "--config", "debug", "--output_dir", "outputs/own", "dataset.name=rows.jsonl", *SMALL],
        ["seeds", "--config", "debug", "--seeds", "42", "123", *TINY],
        ["format", "--input_dir", "outputs", "--output_latex", "tables.tex", "--output_csv", "results.csv"],
        ["suite", "e1-e5", "--config", "debug", "--seeds", "42", "--members", "E1_baseline", "E4_rkv", *TINY],
        ["analyze", "--output_base", runs],
        ["report", runs, "--output", "report.html"],
        ["extract", *explicit, "kv", *TINY, "--with_importance", "--with_cue"],
        ["extract", "--output_dir", "kv", "--verify"],
        ["distill", *explicit, "outputs/words", *SMALL, *TINY],
        ["distill", *explicit, "outputs/stored", *SMALL, *TINY, "teacher.store=kv"],
        ["distill", "--config", "multi_teacher_embedded", "--output_dir", "outputs/many", *SMALL, *TINY],
    ):
        done = node.kava(*words)
        assert done.returncode == 0, f"kava {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    whole = json.loads((tmp_path / "outputs" / "debug_multi_seed" / "aggregated_results.json").read_text())
    assert whole["debug"]["num_seeds"] == 2
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "outputs" / "words" / "final_model" / "student").is_dir()


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    node = Node(tmp_path)
    model = "meta-llama/Llama-3.2-1B-Instruct"
    done = node.kava("train", "--config", "llama1b_aug", "--quick_test")
    assert done.returncode == 2
    assert [model in line for line in errors(done)] == [True]
    assert "Retrying" not in done.stderr
    rows = ["dataset.name=openai/gsm8k", "dataset.cot_type=natural_language", "rkv.method=rkv"]
    done = node.kava("train", "--config", "debug", "--output_dir", "outputs/a", *rows)
    assert done.returncode == 2
    assert ["openai/gsm8k" in line for line in errors(done)] == [True]
    done = node.kava("evaluate", "--checkpoint", "outputs/none")
    assert done.returncode == 2
    assert ["outputs/none" in line for line in errors(done)] == [True]

    done = node.kava("assets", "verify", "--config", "llama1b_aug", "embedded")
    assert done.returncode == 1
    lacking = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MISSING")]
    assert ["model", model] in [words[:2] for words in lacking]
    assert len(lacking) == 5
    done = node.kava("assets", "fetch", "--model", model)
    assert done.returncode == 1
    assert "login node" in done.stderr


def test_a_filled_cache_is_all_that_a_real_recipe_needs(tmp_path: Path) -> None:
    """Llama and Qwen under their real names, tiny; without and with the offline switch."""
    root = hub.build(tmp_path)
    (root / "datasets" / "gsm8k").rename(root / "datasets" / "kept aside")
    rows = root / "hub" / "datasets--openai--gsm8k"
    (rows / "refs").mkdir(parents=True)
    (rows / "refs" / "main").write_text(hub.SHA)
    shutil.copytree(root / "datasets" / "kept aside", rows / "snapshots" / hub.SHA / "main")
    node = Node(root, HF_HOME=str(root), HF_DATASETS_CACHE=str(root / "datasets_cache"))
    for words in (
        ["assets", "verify", "--config", "llama1b_aug", "adaptive"],
        ["train", "--config", "llama1b_aug", "--quick_test"],
        ["evaluate", "--checkpoint", "outputs/llama1b_aug_seed_42_quick/best_checkpoint", "--quick_test"],
        ["distill", "--quick_test", "--output_dir", "outputs/adaptive", "system.num_workers=0"],
    ):
        done = node.kava(*words)
        assert done.returncode == 0, f"kava {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    node.environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = node.kava("train", "--config", "llama1b_aug", "--quick_test", "--output_dir", "outputs/switched")
    assert done.returncode == 0, done.stderr[-3000:]
