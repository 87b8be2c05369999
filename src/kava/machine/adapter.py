"""The machine in one object: its hardware and folders, settings that fit, and what is wrong with it.

adapter = create_environment_adapter()          # prints the report
config = adapter.get_training_config()          # device, dtype, batch_size, gradient_accumulation_steps, ...
device = adapter.device_for_training(None)      # raises where there is no GPU and the settings forbid the CPU
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kava.errors import ConfigError, RunError
from kava.machine import autotune, detect
from kava.machine.checks import Check, check_device, check_packages, check_paths
from kava.machine.detect import Hardware, Package, System
from kava.machine.paths import ProjectPath, find_paths, project_root
from kava.machine.settings import Settings, load_settings


@dataclass(frozen=True)
class EnvironmentAdapter:
    """System, hardware, paths, packages and settings of this machine."""

    settings: Settings
    system: System
    hardware: Hardware
    places: tuple[ProjectPath, ...]
    packages: tuple[Package, ...]
    environ: Mapping[str, str]
    torch_error: str | None

    @property
    def precision(self) -> str | None:
        """bf16, fp16 or fp32; None where torch cannot tell."""
        return None if self.hardware.device == "UNKNOWN" else detect.choose_precision(self.hardware, self.settings)[0]

    @property
    def paths(self) -> dict[str, str]:
        return {place.name: str(place.path) for place in self.places}

    def report(self) -> str:
        """The environment report: the same lines on every machine, ASCII but for names of folders and machines."""
        system, hardware = self.system, self.to_dict()["hardware"]
        known = {name: "unknown" if value is None else str(value) for name, value in hardware.items()}
        bf16 = {"True": "YES", "False": "NO"}.get(known["bf16"], "unknown")
        lines = [
            "[Environment Detection Report]",
            "=" * 70,
            f"[Environment Type]: {system.type.upper()}",
            *([f"   Scheduler: {system.scheduler.upper()}"] if system.scheduler else []),
            f"   Platform: {system.platform}",
            f"   Hostname: {system.hostname}",
            f"   CPU Cores: {system.cpu_cores}",
            "\n[Hardware Configuration]:",
            f"   Device: {self.hardware.device}",
            f"   Name: {self.hardware.name}",
            f"   GPUs: {known['gpus']}",
            f"   Memory: {known['memory_gb']}" + ("" if hardware["memory_gb"] is None else " GB"),
            f"   Precision: {self.precision.upper() if self.precision else 'unknown'}",
            f"   BF16 Support: {bf16}",
            "\n[Path Configuration]:",
            *(f"   {name}: {path}" for name, path in self.paths.items()),
            "\n[Dependencies]:",
            *(f"   {package}" for package in self.packages),
        ]
        return "\n".join(lines)

    def checks(self) -> list[Check]:
        """The checks of device, paths and dependencies. That of the KV extractor loads a model; `kava env` makes it."""
        return [
            check_device(self.hardware, self.settings),
            check_paths(self.places, self.settings),
            check_packages(self.packages, self.torch_error),
        ]

    def recommend(self, device: str | None = None) -> dict[str, Any]:
        """Settings that fit the detected device, or `device`; nothing is refused."""
        hardware = detect.cpu() if device == "cpu" else self.hardware
        config = autotune.training_config(self.settings, hardware, self.system.cpu_cores, self.environ)
        return {**config, "paths": self.paths}

    def get_training_config(self, device: str | None = None) -> dict[str, Any]:
        """`recommend` for a run that starts now: raises where the settings forbid it."""
        self._need_torch()
        failed = [f"{check.name}: {check.detail}" for check in self.checks() if check.status == "failed"]
        if failed and self.settings["error_handling.on_incompatible_env"] == "error":
            raise RunError("; ".join(failed), "mend this, or set error_handling.on_incompatible_env: adapt")
        if device is not None:
            self.device_for_training(device)
        config = self.recommend(device)
        strategy, processes = self.settings["hardware.multi_gpu_strategy"], config["processes"]
        if strategy == "single" and processes > 1:
            raise ConfigError(
                f"hardware.multi_gpu_strategy = single, but this is one of {processes} processes",
                "start it without torchrun, or set hardware.multi_gpu_strategy: auto",
            )
        if strategy == "ddp" and processes == 1 and self.launch() and config["device"] != "cpu":
            raise ConfigError(
                f"hardware.multi_gpu_strategy = ddp, but this is one process for {self.hardware.gpus} GPUs",
                f"start it with {self.launch()}kava ..., or set hardware.multi_gpu_strategy: auto",
            )
        return config

    def recipe_settings(self, device: str | None = None) -> dict[str, Any]:
        """`get_training_config` in the keys of a recipe, section.key."""
        return autotune.recipe_settings(self.get_training_config(device))

    def device_for_training(self, explicit: str | None = None) -> str:
        """cpu, cuda, cuda:1 or mps. "cpu" always works; instead of a GPU the CPU is taken only if the settings allow it."""
        if explicit == "cpu":
            return "cpu"
        self._need_torch()
        if explicit in (None, "auto"):
            if not self.hardware.has_gpu and not self.settings.cpu_allowed():
                raise ConfigError(
                    f"no GPU was found, and {self.settings.source} forbids to take the CPU for it "
                    "(fallback_to_cpu, on_no_gpu)",
                    "run it where a GPU is, or say --device cpu",
                )
            return self.hardware.torch_device
        kind, _, index = str(explicit).partition(":")
        known = self.hardware.has_gpu and kind == self.hardware.torch_device
        if not known or (index and not (index.isdigit() and int(index) < self.hardware.gpus)):
            raise ConfigError(f"device {explicit!r} is not available on this machine", "use --device cpu or auto")
        return str(explicit)

    def _need_torch(self) -> None:
        if self.hardware.device == "UNKNOWN":
            reason = self.hardware.error or self.torch_error
            raise RunError(f"no device to train on: {reason}", "kava env says what is wrong and what to do")

    def limit_memory(self) -> None:
        """Limit this process to hardware.memory_fraction of its CUDA GPU; more is an out-of-memory error."""
        if self.hardware.torch_device == "cuda":
            rank = self.environ.get("LOCAL_RANK", "")  # torchrun's; where each process sees one GPU, that is its first
            index = int(rank) if rank.isdigit() and int(rank) < self.hardware.gpus else 0
            share = float(self.settings["hardware.memory_fraction"])
            detect.load_torch()[0].cuda.set_per_process_memory_fraction(share, index)

    def launch(self) -> str:
        """The torchrun words before `kava` that use every GPU, or nothing."""
        several = self.hardware.torch_device == "cuda" and self.hardware.gpus > 1
        spread = several and self.settings["hardware.multi_gpu_strategy"] != "single"
        return f"torchrun --nproc_per_node {self.hardware.gpus} -m " if spread else ""

    def to_dict(self) -> dict[str, Any]:
        """All of it for programs; what is not known is null."""
        hardware = self.hardware
        known = hardware.device != "UNKNOWN"
        return {
            **asdict(self.system),
            "settings": str(self.settings.source) if self.settings.source else None,
            "hardware": {
                **{name: getattr(hardware, name) if known else None for name in ("device", "name", "gpus")},
                "memory_gb": None if hardware.memory is None else round(hardware.memory, 1),
                "precision": self.precision,
                "bf16": "bf16" in hardware.precisions if known else None,
            },
            "paths": {p.name: {"path": str(p.path), "source": p.source, "problem": p.problem} for p in self.places},
            "dependencies": [asdict(package) | {"ok": package.ok} for package in self.packages],
        }


def find_environment(
    config_path: str | Path | None = None, environ: Mapping[str, str] | None = None, here: Path | None = None
) -> EnvironmentAdapter:
    """The machine as variables, folders, packages and torch show it; creates and prints nothing."""
    environ = dict(os.environ if environ is None else environ)
    here = here or Path.cwd()
    settings = load_settings(config_path, project_root(environ, here))
    torch, error = detect.load_torch()
    hardware = detect.find_hardware(torch, settings["hardware.gpu_detection.auto_detect"], environ)
    system = detect.find_system(environ, settings["environment_type"])
    places = find_paths(settings, environ, system.type == "hpc", here)
    packages = detect.find_packages(settings, {} if error is None else {"torch": error})
    return EnvironmentAdapter(settings, system, hardware, places, packages, environ, error)


def create_environment_adapter(config_path: str | Path | None = None, quiet: bool = False) -> EnvironmentAdapter:
    """The machine, and unless `quiet` its report on the console, with what is wrong.

    `config_path`: an environment file in place of configs/environment_config.yaml in the project's root.
    """
    adapter = find_environment(config_path)
    if not quiet:
        wrong = [str(check) for check in adapter.checks() if check.status in ("warning", "failed")]
        say("\n".join([adapter.report(), *wrong]))
    return adapter


def say(text: str) -> None:
    """Print, with characters escaped that the console's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
