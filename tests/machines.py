"""Other machines in miniature: a torch with some GPU or none, packages with versions, a scheduler's variables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kava.machine import detect
from kava.machine.adapter import EnvironmentAdapter, find_environment

JOBS = {
    "slurm": {"SLURM_JOB_ID": "1"},
    "cobalt": {"COBALT_JOBID": "1"},
    "pbs": {"PBS_JOBID": "1.server"},
    "lsf": {"LSB_JOBID": "1"},
    "sge": {"SGE_TASK_ID": "3"},
}
ORDER = ["slurm", "cobalt", "pbs", "lsf", "sge"]
VERSIONS = {"torch": "2.7.1+cu126", "transformers": "4.57.1", "peft": "0.18.0", "accelerate": "1.11.0",
            "safetensors": "0.6.2", "numpy": "2.1.0", "bitsandbytes": "0.48.2"}  # fmt: skip


LAPTOP = {"name": "NVIDIA GeForce RTX 4070 Laptop GPU", "gb": 8.6, "capability": (8, 9)}


def fake_torch(
    name: str = "",
    gb: float = 0.0,
    capability: tuple[int, int] = (0, 0),
    arch: str = "",
    mps: bool = False,
    gpus: int = 1,
) -> Any:
    """A torch with one kind of GPU (none: `name` is empty); its is_bf16_supported says yes to all, as emulation does."""
    properties = SimpleNamespace(name=name, total_memory=int(gb * 1e9), major=capability[0], minor=capability[1])
    if arch:
        properties.gcnArchName = arch
    cuda = SimpleNamespace(
        is_available=lambda: bool(name),
        device_count=lambda: gpus,
        get_device_properties=lambda _: properties,
        is_bf16_supported=lambda: True,
    )
    return SimpleNamespace(
        __version__="2.7.1",
        cuda=cuda,
        version=SimpleNamespace(hip="6.2" if arch else None, cuda=None if arch else "12.6"),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        mps=SimpleNamespace(recommended_max_memory=lambda: int(gb * 1e9)),
    )


def gpu(**settings: Any) -> Any:
    return fake_torch(**(LAPTOP | settings))


def builder(monkeypatch: pytest.MonkeyPatch, here: Path) -> Callable[..., EnvironmentAdapter]:
    """What finds a machine's environment: its torch, variables, environment file and package versions (None: absent)."""

    def build(
        library: Any, environ: dict[str, str] | None = None, text: str = "", **versions: str | None
    ) -> EnvironmentAdapter:
        known = VERSIONS | versions

        def version(name: str) -> str:
            if known.get(name) is None:
                raise metadata.PackageNotFoundError(name)
            return str(known[name])

        monkeypatch.setitem(sys.modules, "torch", library)
        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(detect.platform, "system", lambda: "Windows")
        monkeypatch.setattr(detect.platform, "node", lambda: "laptop")
        monkeypatch.setattr(detect, "cpu_cores", lambda: 20)
        config = None
        if text:
            config = here / "mine.yaml"
            config.write_text(text, encoding="utf-8")
        return find_environment(config, environ or {}, here)

    return build
