"""docs/from-the-guides.md: lines marked `works` run on tiny models, lines marked `planned` do not parse yet."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import hub
import kava
from kava.cli.common import OVERRIDES, check_flags
from kava.cli.distill import request_of
from kava.cli.distill_settings import resolve
from kava.cli.main import main
from kava.cli.verbs import VERBS, underscores, verb_command
from kava.config import load_recipe
from kava.errors import KavaError
from kava.machine.adapter import find_environment
from kava.training.guide_files import EPOCH_LINE, STEP_LINE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-the-guides.md"
STATES = ("works", "planned", "same")
SCRIPTS = (
    "setup.sh", "smoke_test.py", "train.py", "evaluate.py", "aggregate_multi_seed.py", "format_results.py",
    "run_multi_seed.py", "run_multi_seed.ps1", "hpc_run_all.sh", "submit_multi_seed.slurm", "submit_aggregate.slurm",
    "submit_kava.sh", "inference.py", "benchmark_incremental_decoding.py", "model_configs.py", "train_with_kv.py",
    "export_gsm8k.py", "run_hpc_training.sh", "run_all_experiments.sh", "analyze_results.py", "run_ultra_large.sh",
    "run_multinode.sh", "check_environment.py", "train_adaptive.py", "submit_slurm.sh", "submit_pbs.sh",
    "test_setup.sh", "download_assets.py", "test_multi_teacher.py", "train_multi_teacher_kv.py",
    "run_multi_teacher.sh", "run_three_stage_routing.sh", "extract_dual_style_kv.py",
)  # fmt: skip

SMALL = {"--subset_size": "16", "--num_workers": "0", "--max_steps": "2", "--epochs": "1", "--warmup_steps": "1",
         "--gradient_accumulation_steps": "2", "--batch_size": "4", "--max_samples": "16", "--n_samples": "16"}  # fmt: skip
MEMBERS = {
    "e1-e5": ("E1_baseline", "E4_rkv"),
    "phases": ("sft", "single_gpt2", "fixed"),
    "stages": ("fixed", "similarity", "learnable"),
    "ablations": ("routing_gate", "teachers_1", "layers_shallow"),
}


class Row(NamedTuple):
    guide: str
    here: str
    state: str

    @property
    def words(self) -> list[str]:
        """Our command, if the cell is one."""
        code = re.fullmatch(r"`([^`]+)`", self.here)
        return shlex.split(code[1]) if code else []


def rows() -> list[Row]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [Row(*three) for three in cells if three[2] in STATES]


ROWS = rows()
OURS = [row for row in ROWS if row.words[:1] == ["kava"]]


def parse(words: list[str]) -> None:
    """Everything short of running the verb: its flags, their values and the settings behind them."""
    verb, *rest = words
    if verb not in [known.name for known in VERBS]:
        raise KavaError(f"no verb {verb}")
    if importlib.util.find_spec(f"kava.cli.{verb}") is None:
        raise KavaError(f"{verb} is not written yet")
    module = importlib.import_module(f"kava.cli.{verb}")
    command = verb_command(verb, module)
    rest = underscores(rest)
    if hasattr(command, "commands"):
        if rest[0] not in command.commands:
            raise KavaError(f"no {verb} {rest[0]}")
        command, rest = command.commands[rest[0]], rest[1:]
    if verb == "submit":
        assert main(shown(words)) == 0
        return
    context = command.make_context(verb, list(rest))
    if verb == "distill":
        resolve(request_of(context), find_environment(), probe=lambda recipe: 1)
    if getattr(module, "CONTEXT", None) is OVERRIDES:
        load_recipe(context.params.get("config") or context.params.get("get") or "debug", check_flags(context))


def shown(words: list[str]) -> list[str]:
    """kava submit on a machine without a scheduler: the scripts and nothing else."""
    return [*words, *([] if "--scheduler" in words else ["--scheduler", "slurm"]), "--dry_run"]


def test_every_row_has_a_state_and_every_script_a_row() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    heads = [line for line in lines if line.startswith(("| there", "|---"))]
    assert len(ROWS) + len(heads) == len(lines)
    guide = " ".join(row.guide for row in ROWS)
    assert [name for name in SCRIPTS if not re.search(rf"(?<![\w]){re.escape(name)}", guide)] == []


@pytest.mark.parametrize("row", [row for row in OURS if row.state == "planned"], ids=lambda row: row.here)
def test_what_is_planned_does_not_work_yet(row: Row) -> None:
    import typer

    usage = typer.BadParameter.__mro__[2]
    with pytest.raises((KavaError, usage)):
        parse(row.words[1:])


@pytest.mark.parametrize("row", [row for row in OURS if row.state == "works"], ids=lambda row: row.here)
def test_flags_and_settings_are_known(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "configs_backup/llama1b_aug.yaml" in row.words:
        assert main(["config", "--export", "configs_backup"]) == 0
    parse(row.words[1:])


@pytest.mark.parametrize("row", [row for row in ROWS if row.state == "works" and row.words[:1] != ["kava"]])
def test_what_is_no_verb_of_ours_exists(row: Row) -> None:
    program, *_, target = row.words
    if program == "python":
        for name in re.search(r"from kava import ([\w, ]+)", target)[1].split(", "):
            assert callable(getattr(kava, name))
    elif program == "make":
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    else:
        subprocess.run([program, "-n", target], cwd=ROOT, check=True)


def quick(words: list[str]) -> list[str] | None:
    """The line as it is run here: training for four updates, without a tracker that is not installed; None = not run."""
    if any(word.partition("=")[2].startswith("/path/to/") for word in words):
        return None  # a path of the reader's own
    if words[0] == "submit":
        return shown(words)
    words = [word for word in words if word != "--use_wandb"]
    if words[0] == "train":
        batch = [word for word in words if word.startswith("training.batch_size=")]  # a batch larger than the tiny set
        words = [word for word in words if word not in batch]
        words += ["system.num_workers=0", *([] if "--quick_test" in words else ["--quick_test"])]
    if words[0] == "distill":
        words = ["--bf16" if word == "--fp16" else word for word in words]  # a CPU has no float16
        for place, value in enumerate(words[1:], 1):
            if value.isdigit():
                words[place] = SMALL.get(words[place - 1], value)
        words += ["--quick_test", *([] if "--num_workers" in words else ["system.num_workers=0"])]
    if words[0] == "seeds":
        words += ["--quick_test", "system.num_workers=0", "evaluation.max_new_tokens=4"]
    if words[0] == "suite":  # a few members stand for all
        words += ["--quick_test", "--seeds", "42", "system.num_workers=0", "--members", *MEMBERS[words[1]]]
    if words[0] in ("analyze", "report"):  # of a suite that ran as a rehearsal
        words = [f"{word}_quick" if word in ("outputs/latent", "outputs/phases") else word for word in words]
    if words[0] == "bench":
        words += ["--repeats", "1"]
    if words[0] in ("evaluate", "infer") and "--max_new_tokens" not in words:
        words += ["--max_new_tokens", "4"]
    return words


@pytest.mark.long
def test_the_lines_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hub.enter(hub.build(tmp_path), monkeypatch)
    (root / "questions.txt").write_text("Ann has 3 apples and buys 4. How many?\n3+4?\n")
    for row in ROWS:
        if row.state == "works" and row.words[0] == "python":
            subprocess.run([sys.executable, *row.words[1:]], cwd=root, check=True, capture_output=True)
        words = quick(row.words[1:]) if row.state == "works" and row in OURS else None
        if words is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO("3+4?\n/latent off\n3+4?\n/quit\n"))
            no_quantiser = importlib.util.find_spec("bitsandbytes") is None  # then a 4-bit teacher is refused
            refused = no_quantiser and "--load_in_4bit" in words
            assert main(words) == (2 if refused else 0), row.here
    seed = root / "outputs" / "llama1b_aug" / "seed_42"
    for name in ("gsm8k", "gsm8k-hard", "svamp"):
        assert yaml.safe_load((seed / f"results_{name}.yaml").read_text())["total"] == hub.TEST_ROWS
    assert (root / "outputs" / "llama1b_aug_seed_42_quick" / "results_gsm8k.yaml").is_file()
    for tree in ("llama1b_aug", "llama1b_aug_multi_seed_quick"):
        whole = root / "outputs" / tree / "aggregated_results.json"
        aggregated = json.loads(whole.read_text())
        assert aggregated == json.loads(json.dumps(yaml.safe_load(whole.with_suffix(".yaml").read_text())))
        assert list(aggregated) == ["llama1b_aug"]
        assert aggregated["llama1b_aug"]["num_seeds"] == 3
        assert list(aggregated["llama1b_aug"]["datasets"]) == ["gsm8k", "gsm8k-hard", "svamp"]
    assert r"\begin{tabular}{llccc}" in (root / "paper_tables.tex").read_text()
    assert len((root / "results.csv").read_text().splitlines()) == 4
    assert "E4_rkv" in (root / "outputs" / "EXPERIMENT_REPORT.txt").read_text()
    assert len((root / "answers.txt").read_text().split("-" * 80)) == 2
    _guide_files(root / "outputs")


def _guide_files(outputs: Path) -> None:
    """What the HPC guide promises in every folder of an experiment."""
    wanted = {
        "E1_baseline": ("off", "false"), "E2_full_kv": ("full", "false"), "E3_right_crop": ("crop", "false"),
        "E4_rkv": ("rkv", "false"), "E5_shuffled": ("rkv", "true (time)"), "adaptive_seed_42_quick": ("full", "false"),
        "kava_experiment": ("rkv", "false"),
    }  # fmt: skip
    for name, (method, shuffled) in wanted.items():
        folder = outputs / name
        done = dict(line.split(": ", 1) for line in (folder / "TRAINING_COMPLETED.txt").read_text().splitlines())
        assert (done["kv_method"], done["shuffle_kv"]) == (method, shuffled), name
        lines = (folder / "training_log.txt").read_text().splitlines()
        assert any(STEP_LINE.fullmatch(line) for line in lines)
        assert EPOCH_LINE.fullmatch(lines[-1])
        assert list(folder.glob("checkpoint-*"))
        assert {path.name for path in (folder / "final_model").iterdir()} >= {"student"}
