"""`kava env` and the environment adapter: schedulers, devices, paths, packages, settings; without torch as well."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kava
from kava.cli import env as verb
from kava.cli.main import main
from kava.errors import ConfigError, RunError
from kava.machine import adapter as adapter_module
from kava.machine import detect
from kava.machine.adapter import EnvironmentAdapter, create_environment_adapter
from kava.machine.checks import next_step
from kava.machine.detect import find_hardware, find_system, scheduler_of_job
from machines import JOBS, ORDER, builder, fake_torch, gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another machine: its torch, variables, file and packages; its current folder is empty."""
    return builder(monkeypatch, tmp_path)


# ---- schedulers


@pytest.mark.parametrize("name", ORDER)
def test_a_schedulers_variable_is_found_and_beats_those_after_it(name: str):
    later = {key: value for other in ORDER[ORDER.index(name) :] for key, value in JOBS[other].items()}
    assert scheduler_of_job(JOBS[name]) == scheduler_of_job(later) == name
    inside = find_system(later | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert (inside.type, inside.scheduler) == ("hpc", name)
    assert scheduler_of_job(dict.fromkeys(JOBS[name], "")) is None


@pytest.mark.parametrize(
    ("environ", "scheduler"),
    [
        ({"SGE_TASK_ID": "undefined"}, None),
        ({"SGE_TASK_ID": "undefined", "JOB_ID": "7", "SGE_ROOT": "sge"}, "sge"),
        ({"JOB_ID": "7"}, None),
        ({"SGE_ROOT": "sge"}, None),
        ({"SLURM_JOBID": "7"}, "slurm"),
    ],
)
def test_what_makes_a_job_of_grid_engine(environ: dict[str, str], scheduler: str | None):
    assert scheduler_of_job(environ) == scheduler


def test_cloud_local_and_a_type_that_is_given():
    assert find_system({}).type == "local"
    assert find_system({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).type == "cloud"
    assert find_system({}, "hpc").type == "hpc"
    given = find_system(JOBS["slurm"], "local")
    assert (given.type, given.scheduler) == ("local", None)


# ---- reports


def golden(here: Path, kind: str) -> str:
    return f"""\
[Environment Detection Report]
======================================================================
[Environment Type]: {kind}
   Platform: Windows
   Hostname: laptop
   CPU Cores: 20

[Hardware Configuration]:
   Device: CUDA
   Name: NVIDIA GeForce RTX 4070 Laptop GPU
   GPUs: 1
   Memory: 8.6 GB
   Precision: BF16
   BF16 Support: YES

[Path Configuration]:
   models: {here / "local_models"}
   data: {here / "local_data"}
   cache: {here / "cache"}
   output: {here / "outputs"}
   checkpoints: {here / "checkpoints"}

[Dependencies]:
   [OK] torch (2.7.1+cu126)
   [OK] transformers (4.57.1)
   [OK] peft (0.18.0)
   [OK] accelerate (1.11.0)
   [OK] safetensors (0.6.2)
   [OK] numpy (2.1.0)
   [X] datasets (not installed) - optional
   [OK] bitsandbytes (0.48.2)
   [X] tensorboard (not installed) - optional
   [X] wandb (not installed) - optional"""


@pytest.mark.parametrize("name", [None, "kubernetes", *ORDER])
def test_the_report(name: str | None, machine, tmp_path: Path):
    kinds = {None: "LOCAL", "kubernetes": "CLOUD"}
    environ = JOBS.get(str(name)) or ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"} if name else {})
    found = machine(gpu(), environ)
    assert found.report() == golden(tmp_path, kinds.get(name) or f"HPC\n   Scheduler: {str(name).upper()}")
    assert found.to_dict()["type"] == kinds.get(name, "hpc").lower()
    assert found.to_dict()["scheduler"] == (name if name in ORDER else None)
    assert [check.status for check in found.checks()] == ["ok", "ok", "ok"]
    assert list(tmp_path.iterdir()) == []  # looking makes nothing


def test_without_torch(machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    found = machine(None, torch=None)
    text = found.report()
    assert "   Device: UNKNOWN\n   Name: unknown without torch\n   GPUs: unknown\n   Memory: unknown\n" in text
    assert "   [X] torch (not installed)\n   [OK] transformers (4.57.1)\n" in text
    assert found.to_dict()["hardware"] == dict.fromkeys(("device", "name", "gpus", "memory_gb", "precision", "bf16"))
    assert [check.status for check in found.checks()] == ["not run", "ok", "failed"]
    for ask in (found.get_training_config, found.device_for_training):
        with pytest.raises(RunError, match="no device to train on"):
            ask()
    assert found.device_for_training("cpu") == "cpu"
    monkeypatch.setattr(adapter_module, "find_environment", lambda config: found)
    assert main(["env"]) == 1
    out = capsys.readouterr().out
    assert "[X] Dependencies: torch is not installed\n   [NOT RUN] KV Extractor: torch is needed\n" in out
    assert "[Next Step]:\n   bash setup.sh, or: pip install --upgrade 'torch>=2.6'" in out
    assert main(["env", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["recommended"]) == (False, None)


def test_a_torch_that_breaks_on_a_gbk_console_of_a_folder_with_a_chinese_name(tmp_path: Path):
    folder = tmp_path / "\u9879\u76ee \U0001f680"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text('raise OSError("libcublas.so.12: cannot open shared object file")')
    for encoding, path in (("gbk", "\u9879\u76ee \\U0001f680".encode("gbk")), ("ascii", rb"\u9879\u76ee \U0001f680")):
        plain = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding, "PYTHONPATH": str(folder)}
        done = subprocess.run([sys.executable, "-m", "kava", "env"], cwd=folder, env=plain, capture_output=True)
        assert (done.returncode, done.stderr.split()[:2]) == (1, [b"loading", b"PyTorch"]), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert path + b"/outputs" in done.stdout.replace(b"\\outputs", b"/outputs")
        assert re.search(rb"\[X\] torch \([\w.+]+: cannot be imported: libcublas.so.12: cannot open", done.stdout)


def test_a_script_on_such_a_console_survives_too(monkeypatch: pytest.MonkeyPatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="gbk", newline="")
    monkeypatch.setattr(sys, "stdout", console)
    adapter_module.say("\u9879\u76ee \U0001f680")
    assert console.buffer.getvalue().rstrip() == "\u9879\u76ee \\U0001f680".encode("gbk")


def test_importing_it_imports_no_torch():
    script = (
        "import sys, kava.machine.adapter, kava.cli.env; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_kava_env_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The real thing, CUDA_VISIBLE_DEVICES="": no GPU is no error, and the extractor is really probed."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("KAVA_", "SLURM", "PBS", "LSB", "COBALT", "SGE", "KUBERNETES", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["env", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["type"], document["scheduler"], document["ok"]) == ("local", None, True)
    assert document["hardware"]["device"] == "CPU"
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["Device"]["detail"] == "no GPU (CUDA_VISIBLE_DEVICES hides every GPU); runs use the CPU"
    assert checks["KV Extractor"]["detail"] == "ready (3 layers x 2 heads x 8 = 48)"
    assert document["recommended"]["effective_batch_size"] == 32
    assert document["paths"]["output"] == {"path": str(tmp_path / "outputs"), "source": "default", "problem": None}
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("[")] == [
        "[Environment Detection Report]", "[Environment Type]: LOCAL", "[Hardware Configuration]:",
        "[Path Configuration]:", "[Dependencies]:", "[Checks]:", "[Recommended Configuration]:", "[Next Step]:",
    ]  # fmt: skip
    assert out.endswith("[Next Step]:\n   kava distill\n")
    assert out.isascii()
    assert list(tmp_path.iterdir()) == []


def test_an_extractor_that_measures_wrong_or_raises_fails_the_check(monkeypatch: pytest.MonkeyPatch):
    from kava.backbone import extractor

    wrong = SimpleNamespace(num_layers=3, num_heads=4, head_dim=8, total_dim=96)
    monkeypatch.setattr(extractor, "probe", lambda model: wrong)
    assert verb._check_extractor(True).detail == "layers, heads, head size, sum are (3, 4, 8, 96), not (3, 2, 8, 48)"
    monkeypatch.setattr(extractor, "probe", lambda model: [][0])
    assert verb._check_extractor(True).status == "failed"


# ---- devices


@pytest.mark.parametrize(
    ("torch", "device", "torch_device", "precisions"),
    [
        (fake_torch("NVIDIA A100", 42.5, (8, 0)), "CUDA", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("NVIDIA GeForce RTX 3090", 25.4, (8, 6)), "CUDA", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("NVIDIA GeForce RTX 4090", 25.4, (8, 9)), "CUDA", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("NVIDIA B200", 190.0, (10, 0)), "CUDA", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("Tesla V100-SXM2-16GB", 16.9, (7, 0)), "CUDA", "cuda", ("fp16", "fp32")),
        (fake_torch("Tesla T4", 15.8, (7, 5)), "CUDA", "cuda", ("fp16", "fp32")),
        (fake_torch("AMD Instinct MI250X", 68.7, (9, 0), "gfx90a:sramecc+:xnack-"), "ROCm", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("AMD Instinct MI300X", 206.0, (9, 4), "gfx942"), "ROCm", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch("AMD Radeon VII", 17.2, (9, 0), "gfx906"), "ROCm", "cuda", ("fp16", "fp32")),
        (fake_torch("AMD Radeon RX 6900 XT", 17.2, (10, 3), "gfx1030"), "ROCm", "cuda", ("fp16", "fp32")),
        (fake_torch("AMD Radeon RX 7900 XTX", 25.7, (11, 0), "gfx1100"), "ROCm", "cuda", ("bf16", "fp16", "fp32")),
        (fake_torch(gb=22.9, mps=True), "MPS", "mps", ("fp16", "fp32")),
        (fake_torch(), "CPU", "cpu", ("fp32",)),
    ],
)  # fmt: skip
def test_device_and_native_precision(torch: Any, device: str, torch_device: str, precisions: tuple[str, ...]):
    found = find_hardware(torch)
    assert (found.device, found.torch_device, found.precisions) == (device, torch_device, precisions)
    assert find_hardware(torch, look_for_gpu=False).device == "CPU"


def test_a_gpu_that_does_not_answer_is_a_failure_and_no_cpu(machine):
    torch = gpu()
    torch.cuda.get_device_properties = lambda _: raise_(RuntimeError("CUDA error: unknown error\nmore"))
    found = machine(torch)
    assert found.checks()[0].status == "failed"
    assert "CUDA error: unknown error" in found.checks()[0].detail
    with pytest.raises(RunError, match="unknown error"):
        found.device_for_training()


def raise_(error: Exception) -> None:
    raise error


def test_an_invisible_gpu_is_explained(monkeypatch: pytest.MonkeyPatch):
    torch = fake_torch()
    torch.version.cuda = None
    monkeypatch.setattr(detect.shutil, "which", lambda name: f"somewhere/{name}")
    assert "built without CUDA" in str(find_hardware(torch, environ={}).hint)
    assert find_hardware(torch, environ={"CUDA_VISIBLE_DEVICES": ""}).hint == "CUDA_VISIBLE_DEVICES hides every GPU"


@pytest.mark.parametrize(
    ("text", "gpu_name", "capability", "precision", "warns"),
    [
        ("hardware: {precision: {supported_dtypes: {RTX 3090: [fp16, fp32]}}}", "RTX 3090", (8, 6), "fp16", False),
        ("hardware: {precision: {supported_dtypes: {RTX: bf16, rtx 3090: fp16}}}", "RTX 3090", (8, 6), "fp16", False),
        ("hardware: {precision: {supported_dtypes: {V100: fp16}}}", "RTX 3090", (8, 6), "bf16", False),
        ("hardware: {precision: {auto_detect: false}}", "A100", (8, 0), "fp32", False),
        ("hardware: {precision: {auto_detect: false, fallback: bf16}}", "V100", (7, 0), "bf16", True),
        ("training: {mixed_precision: {prefer: fp16}}", "A100", (8, 0), "fp16", False),
        ("training: {mixed_precision: {prefer: bf16}}", "V100", (7, 0), "fp16", True),
    ],
)
def test_settings_of_precision(machine, text: str, gpu_name: str, capability, precision: str, warns: bool):
    found = machine(fake_torch(gpu_name, 25.4, capability), text=text)
    assert found.precision == precision
    assert found.get_training_config()["mixed_precision"] == {"fp32": "no"}.get(precision, precision)
    assert (found.checks()[0].status == "warning") == warns


# ---- no GPU


FORBIDDEN = [
    "hardware: {gpu_detection: {fallback_to_cpu: false}}",
    "error_handling: {on_no_gpu: error}",
    "{hardware: {gpu_detection: {fallback_to_cpu: false}}, error_handling: {on_no_gpu: error}}",
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_a_machine_without_gpu_where_the_cpu_is_forbidden(machine, text: str):
    found = machine(fake_torch(), text=text)
    assert found.checks()[0].status == "warning"  # the check itself is never an error
    assert next_step(found.checks(), "") == "kava distill --device cpu"
    for device in (None, "auto"):
        with pytest.raises(ConfigError, match=r"mine.yaml forbids to take the CPU"):
            found.device_for_training(device)
    assert found.device_for_training("cpu") == "cpu"
    config = found.get_training_config("cpu")
    assert (config["device"], config["fallback_to_cpu"], config["on_no_gpu"]) == ("cpu", False, "error")
    assert machine(gpu(), text=text).device_for_training() == "cuda"


def test_devices_that_are_asked_for(machine):
    found = machine(gpu(gpus=2))
    assert [found.device_for_training(one) for one in (None, "auto", "cuda", "cuda:1", "cpu")] == [
        "cuda", "cuda", "cuda", "cuda:1", "cpu",
    ]  # fmt: skip
    for device in ("cuda:2", "cuda:x", "mps", "gpu"):
        with pytest.raises(ConfigError, match="is not available on this machine"):
            found.device_for_training(device)
    assert machine(fake_torch()).device_for_training() == "cpu"
    with pytest.raises(ConfigError, match="not available"):
        machine(fake_torch()).get_training_config("cuda")
    cpu = found.get_training_config("cpu")
    assert (cpu["batch_size"], cpu["dtype"], cpu["pin_memory"]) == (1, "float32", False)


# ---- from Python


def test_from_kava_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kava.create_environment_adapter is create_environment_adapter
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAVA_PROJECT_ROOT", raising=False)
    adapter = kava.create_environment_adapter()
    out = capsys.readouterr().out
    assert isinstance(adapter, EnvironmentAdapter)
    assert out.startswith(adapter.report() + "\n[WARNING] Device: no GPU")
    assert {"device", "dtype", "batch_size", "gradient_accumulation_steps", "effective_batch_size", "paths",
            "mixed_precision"} <= set(adapter.get_training_config())  # fmt: skip
    config = tmp_path / "mine.yaml"
    config.write_text("training: {batch_size: {strategy: fixed, base: 3}}", encoding="utf-8")
    quiet = kava.create_environment_adapter(config, quiet=True)
    assert capsys.readouterr().out == ""
    assert quiet.get_training_config()["batch_size"] == 3
