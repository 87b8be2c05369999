"""What fits a machine, its paths and packages, and the environment file's keys."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import kava
from kava.cli import env as verb
from kava.cli.main import main
from kava.config import load_recipe, show
from kava.errors import ConfigError, RunError
from kava.machine import adapter as adapter_module
from kava.machine import autotune
from kava.machine.checks import Check, next_step
from kava.machine.settings import FREE, KEYS, REJECTED, SHIPPED, load_settings, version_numbers
from machines import JOBS, builder, fake_torch, gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another machine: its torch, variables, file and packages; its current folder is empty."""
    return builder(monkeypatch, tmp_path)


# ---- recommended settings


@pytest.mark.parametrize(
    ("memory", "batch", "accumulation", "checkpointing"),
    [(6.4, 1, 32, True), (7.9, 2, 16, True), (8.6, 2, 16, True), (15.0, 2, 16, True), (15.8, 4, 8, False),
     (16.9, 4, 8, False), (25.4, 4, 8, False), (39.4, 8, 4, False), (42.5, 8, 4, False), (85.0, 8, 4, False)],
)  # fmt: skip
def test_batch_by_memory(machine, memory: float, batch: int, accumulation: int, checkpointing: bool):
    config = machine(gpu(gb=memory)).get_training_config()
    assert (config["batch_size"], config["gradient_accumulation_steps"]) == (batch, accumulation)
    assert config["effective_batch_size"] == 32
    assert config["gradient_checkpointing"] is checkpointing


@pytest.mark.parametrize(
    ("text", "batch", "accumulation"),
    [
        ("training: {batch_size: {strategy: conservative}}", 4, 8),
        ("training: {batch_size: {strategy: fixed, base: 3}}", 3, 11),
        ("training: {batch_size: {auto_detect: false}}", 2, 16),
        ("training: {auto_tune: false, batch_size: {base: 5}}", 5, 7),
        ("training: {batch_size: {base: 16}}", 32, 1),
        ("training: {batch_size: {max: 6}}", 6, 6),
        ("training: {gradient_accumulation: {target_batch_size: 20}}", 8, 3),
        ("training: {gradient_accumulation: {auto_compute: false}}", 8, 1),
    ],
)
def test_settings_of_the_batch(machine, text: str, batch: int, accumulation: int):
    config = machine(gpu(gb=42.5), text=text).get_training_config()
    assert (config["batch_size"], config["gradient_accumulation_steps"]) == (batch, accumulation)
    assert config["effective_batch_size"] == batch * accumulation


def test_processes_share_the_target_batch(machine):
    config = machine(gpu(gpus=4), {"WORLD_SIZE": "4"}).get_training_config()
    assert (config["batch_size"], config["gradient_accumulation_steps"], config["effective_batch_size"]) == (2, 4, 32)
    with pytest.raises(ConfigError, match="WORLD_SIZE = two"):
        machine(gpu(), {"WORLD_SIZE": "two"}).get_training_config()


def test_several_gpus(machine):
    found = machine(gpu(gpus=4))
    assert next_step(found.checks(), found.launch()) == "torchrun --nproc_per_node 4 -m kava distill"
    single = machine(gpu(gpus=4), {"WORLD_SIZE": "4"}, "hardware: {multi_gpu_strategy: single}")
    assert single.launch() == ""
    with pytest.raises(ConfigError, match="one of 4 processes"):
        single.get_training_config()
    ddp = machine(gpu(gpus=4), text="hardware: {multi_gpu_strategy: ddp}")
    with pytest.raises(ConfigError, match="one process for 4 GPUs"):
        ddp.get_training_config()
    assert ddp.get_training_config("cpu")["device"] == "cpu"


def test_the_rest_of_the_config(machine, tmp_path: Path):
    config = machine(gpu()).get_training_config()
    assert (config["device"], config["dtype"], config["mixed_precision"]) == ("cuda", "bfloat16", "bf16")
    assert (config["num_workers"], config["pin_memory"], config["on_oom"]) == (8, True, "reduce_batch")
    assert config["paths"]["checkpoints"] == str(tmp_path / "checkpoints")
    assert (config["kv_aggregation_method"], config["use_all_layers"]) == ("concat", True)
    text = """
model_dimensions: {kv_extraction: {method: last_layer}}
training: {torch_compile: true, gradient_checkpointing: false, dataloader: {num_workers: 0, pin_memory: false}}
logging: {backends: {tensorboard: false, wandb: true}}
error_handling: {on_oom: error}
"""
    settings = machine(gpu(), text=text).recipe_settings()
    assert settings["explicit.use_all_layers"] is False
    assert settings["training.hf.torch_compile"] is True
    assert settings["logging.report_to"] == ["wandb"]
    assert "training.hf.dataloader_prefetch_factor" not in settings
    assert (settings["training.on_oom"], settings["training.gradient_checkpointing"]) == ("error", False)


def test_a_recipe_takes_the_settings(machine):
    found = machine(fake_torch())
    recipe = load_recipe("debug", [f"{key}={show(value)}" for key, value in found.recipe_settings().items()])
    assert (recipe.training.batch_size, recipe.training.gradient_accumulation_steps) == (1, 32)
    assert (recipe.system.device, recipe.system.mixed_precision) == ("cpu", "no")
    assert recipe.training.on_oom == "reduce_batch"


def test_wandb_is_taken_by_itself_only_with_a_key(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(autotune.importlib.util, "find_spec", lambda name: object())
    assert machine(gpu()).get_training_config()["report_to"] == ["tensorboard"]
    assert machine(gpu(), {"WANDB_API_KEY": "x"}).get_training_config()["report_to"] == ["tensorboard", "wandb"]


def test_memory_is_limited_on_cuda_only(machine):
    seen: list[tuple[float, int]] = []
    for torch, rank in ((gpu(gpus=2), "1"), (gpu(), "1"), (fake_torch(), "0")):
        torch.cuda.set_per_process_memory_fraction = lambda *limit: seen.append(limit)
        machine(torch, {"LOCAL_RANK": rank}).limit_memory()
    assert seen == [(0.95, 1), (0.95, 0)]  # one GPU per process: each one's first


# ---- paths


def test_a_variable_beats_the_cluster_beats_the_project(machine, tmp_path: Path):
    cluster = tmp_path / "scratch" / "ann" / "kava"
    cluster.mkdir(parents=True)
    project = tmp_path / "project"
    project.mkdir()
    patterns = [tmp_path / "absent" / "{username}", tmp_path / "scratch" / "{username}" / "kava"]
    text = yaml.safe_dump({"paths": {"hpc_patterns": [str(one) for one in patterns], "defaults": {"data": "./d"}}})
    own = {
        "KAVA_PROJECT_ROOT": str(project),
        "USER": "ann",
        "KAVA_DATA_PATH": str(tmp_path / "mine"),
        "KAVA_CACHE_PATH": "",
    }
    inside = machine(gpu(), own | JOBS["pbs"], text)
    assert inside.paths == {
        "models": str(cluster / "models"),
        "data": str(tmp_path / "mine"),
        "cache": str(cluster / "cache"),
        "output": str(cluster / "outputs"),
        "checkpoints": str(cluster / "checkpoints"),
    }
    assert [place.source for place in inside.places] == [str(cluster), "KAVA_DATA_PATH", *[str(cluster)] * 3]
    outside = machine(gpu(), own, text)
    assert outside.paths["models"] == str(project / "local_models")
    assert outside.paths["data"] == str(tmp_path / "mine")
    del own["KAVA_DATA_PATH"]
    assert machine(gpu(), own, text).paths["data"] == str(project / "d")
    nobody = {"KAVA_PROJECT_ROOT": str(project)} | JOBS["pbs"]
    assert machine(gpu(), nobody, text).paths["output"] == str(project / "outputs")
    assert list(cluster.iterdir()) == list(project.iterdir()) == []


def test_a_cluster_folder_that_cannot_be_written_is_passed_over(machine, tmp_path: Path, monkeypatch):
    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "full" or mode == os.R_OK | os.X_OK)
    text = yaml.safe_dump({"paths": {"hpc_patterns": [str(tmp_path / "full")]}})
    found = machine(gpu(), JOBS["slurm"], text)
    assert {place.source for place in found.places} == {"default"}
    read_only = {"KAVA_MODEL_PATH": str(tmp_path / "full"), "KAVA_OUTPUT_PATH": str(tmp_path / "full")}
    problems = {place.name: place.problem for place in machine(gpu(), read_only).places}
    assert problems == dict.fromkeys(problems, None) | {
        "output": f"nothing can be made in {tmp_path / 'full'} (permission denied)"  # models are only read
    }


def test_paths_that_cannot_be_used_are_named_and_fail(machine, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    found = machine(
        gpu(), {"KAVA_OUTPUT_PATH": str(tmp_path / "file"), "KAVA_CHECKPOINT_PATH": str(tmp_path / "file" / "below")}
    )
    check = found.checks()[1]
    assert check.status == "failed"
    assert f"output: {tmp_path / 'file'}: it is a file, not a folder; checkpoints: " in check.detail
    assert check.fix.endswith("export KAVA_OUTPUT_PATH, KAVA_CHECKPOINT_PATH")
    monkeypatch.setattr(adapter_module, "find_environment", lambda config: found)
    monkeypatch.setattr(verb, "_check_extractor", lambda works: Check("KV Extractor", "ok", "ready"))
    assert main(["env", "--quiet"]) == 1
    assert json.loads(capsys.readouterr().out)["paths"]["output"]["problem"] == "it is a file, not a folder"
    assert found.get_training_config()["batch_size"] == 2  # on_incompatible_env: adapt
    strict = machine(gpu(), dict(found.environ), "error_handling: {on_incompatible_env: error}")
    with pytest.raises(RunError, match="Paths: output"):
        strict.get_training_config()


def test_a_project_root_that_is_none(machine, tmp_path: Path):
    with pytest.raises(ConfigError, match="KAVA_PROJECT_ROOT = nowhere is not a folder"):
        machine(gpu(), {"KAVA_PROJECT_ROOT": "nowhere"})


# ---- packages


def test_versions_are_compared_as_numbers():
    ordered = ["2", "2.0.1", "2.5.1+cu121", "2.6", "2.13.0a0+git1", "10.0rc1"]
    assert sorted(ordered, key=version_numbers) == ordered
    assert version_numbers("2.0") == version_numbers("2.0.0")


def test_old_packages(machine):
    found = machine(gpu(), torch="2.5.1+cu121", bitsandbytes="0.40")
    assert "   [X] torch (2.5.1+cu121: needs 2.6 or later)\n" in found.report()
    assert "   [X] bitsandbytes (0.40: needs 0.46.1 or later) - optional\n" in found.report()
    assert found.checks()[2].detail == "torch 2.5.1+cu121 needs 2.6 or later"
    assert machine(gpu(), bitsandbytes="0.40").checks()[2].status == "warning"
    unchecked = machine(gpu(), text="dependencies: {version_check: false}", torch="1.0")
    assert unchecked.checks()[2].status == "ok"


def test_a_file_raises_floors_and_cannot_lower_them(machine):
    text = (
        'dependencies: {min_versions: {torch: "2.0.0", transformers: "5.1"}, required: [torch, transformers, left-pad]}'
    )
    found = machine(gpu(), text=text, torch="2.5")
    assert found.checks()[2].detail == (
        "torch 2.5 needs 2.6 or later; transformers 4.57.1 needs 5.1 or later; left-pad is not installed"
    )


def test_the_shipped_floors_are_those_of_the_package():
    floors = load_settings(None, ROOT / "tests")["dependencies.min_versions"]
    project = dict(re.findall(r'"([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert {name: project.get(name, floor) for name, floor in floors.items()} == floors


# ---- the file


GUIDE = """
environment_type: auto
hardware:
  gpu_detection: {auto_detect: true, fallback_to_cpu: false}
  precision: {auto_detect: true, fallback: fp32}
model_dimensions:
  auto_detect: true
  kv_extraction: {method: cross_layer_aggregation, detect_at_runtime: true}
  projector: {initialization: dynamic, validate_shapes: true}
training:
  auto_tune: true
  batch_size: {auto_detect: true, strategy: max_fit}
  gradient_accumulation: {auto_compute: true, target_batch_size: 32}
paths:
  env_vars: {models: KAVA_MODEL_PATH, data: KAVA_DATA_PATH}
  defaults: {models: ./local_models, data: ./local_data}
  hpc_patterns:
    - /scratch/{username}/kava
    - /work/{username}/kava
"""


def test_the_guides_file_in_a_project_is_found_and_honoured(machine, tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "environment_config.yaml").write_text(GUIDE, encoding="utf-8")
    found = machine(fake_torch())
    assert found.settings.source == tmp_path / "configs" / "environment_config.yaml"
    assert not found.settings.cpu_allowed()
    assert len(found.settings["paths.hpc_patterns"]) == 2
    assert found.settings["error_handling.on_oom"] == "reduce_batch"  # not in the file: the shipped value
    given = machine(fake_torch(), text="training: {batch_size: {base: 4}}")  # a file that is named takes its place
    assert given.settings.cpu_allowed()


def test_the_shipped_file_lists_every_key():
    def leaves(node: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for part, value in node.items():
            name = prefix + part
            found |= leaves(value, name + ".") if isinstance(value, dict) and name not in FREE else {name}
        return found

    assert leaves(yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))) == {*KEYS, *FREE}
    assert SHIPPED.relative_to(Path(kava.__file__).parent).as_posix() == "machine/environment_config.yaml"
    assert '"machine/*.yaml"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("trainig: {auto_tune: true}", "unknown key 'trainig'", "did you mean 'training'?"),
        ("training: {auto_tun: true}", "unknown key 'training.auto_tun'", "did you mean 'training.auto_tune'?"),
        ("batch_size: {strategy: fixed}", "unknown key 'batch_size'", "did you mean 'training.batch_size"),
        ("hardware: {supported_dtypes: {}}", "unknown key", "did you mean 'hardware.precision.supported_dtypes'?"),
        ("training: {auto_tune: 1}", "training.auto_tune = 1 is not valid: needs true or false", None),
        ("training: {batch_size: 4}", "training.batch_size = 4 is not valid: it is a section of keys", None),
        ("training: {batch_size: {base: 0}}", "needs an integer from 1 to 4096", None),
        ("hardware: {memory_fraction: 95}", "needs a number above 0, 1 at most", None),
        ("hardware: {precision: {supported_dtypes: {A100: [bf16, int8]}}}", "supported_dtypes.A100", None),
        ("dependencies: {min_versions: {torch: 2.10}}", "needs a version in quotes", None),
        ("paths: {hpc_patterns: ['/data/{user}/kava']}", "{username} is the one name", None),
        ("paths: {env_vars: {models: $KAVA}}", "needs a variable's name", None),
        ("hardware: {gpu_selection: [1]}", "needs auto", "a run takes the GPUs that CUDA_VISIBLE_DEVICES names"),
        ("model_dimensions: {auto_detect: false}", "needs true", "sizes are always measured"),
        ("model_dimensions: {on_dimension_mismatch: error}", "needs auto_adapt", "sizes are always measured"),
        ("logging: {level: DEBUG}", "is not supported: needs INFO", "there is one level"),
        ("training: {auto_tune: true, auto_tune: false}", "line 1: key 'auto_tune' appears twice", None),
        ("[1, 2]", "this is list, not a mapping of sections", None),
        (
            "{hardware: {gpu_detection: {fallback_to_cpu: true}}, error_handling: {on_no_gpu: error}}",
            "fallback_to_cpu = true, but error_handling.on_no_gpu = error",
            "set one of them",
        ),
        *((f"{name.replace('.', ': {')}: true" + "}" * name.count("."), f"{name} is not supported: {why}", "leave")
          for name, why in REJECTED.items()),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_with_file_key_and_reason(machine, text: str, message: str, hint: str | None):
    with pytest.raises(ConfigError) as caught:
        machine(gpu(), text=text)
    assert "mine.yaml: " in caught.value.message
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_a_file_that_is_not_there_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read: No such file" in capsys.readouterr().err
