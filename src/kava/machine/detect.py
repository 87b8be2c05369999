"""The system a process runs on (from its variables), its hardware (from torch, which may be missing or broken) and packages."""

import importlib
import os
import platform
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from kava.machine.settings import Settings, version_numbers

GB = 1e9  # memory is counted as it is sold: an "8 GB" card has 8.6 of these
# What an import may raise when a library is broken: a missing shared object, another version's symbols.
IMPORT_ERRORS = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError, SystemError)
# AMD's architectures with bf16 in their matrix units: Instinct MI100 and later, Radeon RX 7000 and later.
ROCM_BF16 = re.compile(r"gfx(908|90a|94\w|95\w|11\w\w|12\w\w)\b")


# In this order, since a scheduler may set another one's variables for the sake of old scripts.
JOB_VARIABLES = {
    "slurm": ("SLURM_JOB_ID", "SLURM_JOBID"),
    "cobalt": ("COBALT_JOBID",),
    "pbs": ("PBS_JOBID",),
    "lsf": ("LSB_JOBID",),
    "sge": ("SGE_TASK_ID", "JOB_ID"),
}


def scheduler_of_job(environ: Mapping[str, str]) -> str | None:
    """The scheduler whose job this process is part of."""
    ids = {name: value for name, value in environ.items() if value}
    if ids.get("SGE_TASK_ID") == "undefined":  # outside of arrays
        del ids["SGE_TASK_ID"]
    if "SGE_ROOT" not in ids:  # other programs set JOB_ID as well
        ids.pop("JOB_ID", None)
    return next((name for name, variables in JOB_VARIABLES.items() if any(v in ids for v in variables)), None)


@dataclass(frozen=True)
class System:
    """`type` is hpc, cloud or local; `scheduler` is None outside of a job."""

    type: str
    scheduler: str | None
    platform: str
    hostname: str
    cpu_cores: int


def find_system(environ: Mapping[str, str], environment_type: str = "auto") -> System:
    """hpc inside a scheduler's job, else cloud inside Kubernetes, else local; `environment_type` overrides it."""
    scheduler = scheduler_of_job(environ)
    kind = environment_type
    if kind == "auto":
        kind = "hpc" if scheduler else "cloud" if environ.get("KUBERNETES_SERVICE_HOST") else "local"
    return System(kind, scheduler if kind == "hpc" else None, platform.system(), platform.node(), cpu_cores())


def cpu_cores() -> int:
    """The CPU cores that this process may use: a job's share of its node, where the system reports it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_torch() -> tuple[Any, str | None]:
    """torch, or None and the error of its import (not installed, or broken)."""
    try:
        return importlib.import_module("torch"), None
    except IMPORT_ERRORS as error:
        return None, first_line(error)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Hardware:
    """The device that a run would use. `device` is CUDA, ROCm, MPS, CPU, or UNKNOWN where torch cannot tell."""

    device: str
    name: str
    gpus: int = 0
    memory: float | None = None  # in GB; the GPU's, or of the CPU the machine's
    precisions: tuple[str, ...] = ("fp32",)  # native ones, best first; emulated ones are left out
    says_precision: bool = True  # False: the GPU does not report its precisions
    error: str | None = None
    hint: str | None = None

    @property
    def has_gpu(self) -> bool:
        return self.device in ("CUDA", "ROCm", "MPS")

    @property
    def torch_device(self) -> str:
        """The device's name in torch, where AMD's GPUs are "cuda" too."""
        return {"CUDA": "cuda", "ROCm": "cuda", "MPS": "mps"}.get(self.device, "cpu")


def find_hardware(torch: Any, look_for_gpu: bool = True, environ: Mapping[str, str] | None = None) -> Hardware:
    """The hardware that torch sees: CUDA or ROCm, else MPS, else the CPU. Driver errors are reported, not hidden."""
    if torch is None:
        return Hardware("UNKNOWN", "unknown without torch", precisions=())
    if look_for_gpu and torch.cuda.is_available():
        try:
            return _gpu(torch)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch's own way to refuse a device
            return Hardware("UNKNOWN", "a GPU that does not answer", precisions=(), error=first_line(error))
    if look_for_gpu and torch.backends.mps.is_available():
        most = getattr(torch.mps, "recommended_max_memory", None)  # of the memory shared with the CPU
        return Hardware("MPS", f"Apple {platform.machine()}", 1, most and most() / GB, ("fp16", "fp32"))
    return cpu(_why_no_gpu(torch, os.environ if environ is None else environ) if look_for_gpu else None)


def cpu(hint: str | None = None) -> Hardware:
    try:
        import psutil

        memory = float(psutil.virtual_memory().total) / GB
    except ImportError:
        memory = None
    return Hardware("CPU", platform.processor() or platform.machine() or "CPU", memory=memory, hint=hint)


def _gpu(torch: Any) -> Hardware:
    """The first visible GPU: a run is one process per GPU, and the GPUs of a node are equal."""
    known, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    arch = str(getattr(known, "gcnArchName", ""))
    native = bool(ROCM_BF16.match(arch)) if torch.version.hip else known.major >= 8
    precisions = ("bf16", "fp16", "fp32") if native else ("fp16", "fp32")
    says = not torch.version.hip or arch != ""
    device = "ROCm" if torch.version.hip else "CUDA"
    return Hardware(device, str(known.name), count, known.total_memory / GB, precisions, says)


def _why_no_gpu(torch: Any, environ: Mapping[str, str]) -> str | None:
    """Why a GPU that exists is not seen; None without a known reason."""
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    if shutil.which("nvidia-smi") and torch.version.cuda is None and not torch.version.hip:
        return f"there is an NVIDIA driver, but torch {torch.__version__} is built without CUDA"
    return None


def choose_precision(hardware: Hardware, settings: Settings) -> tuple[str, str | None]:
    """bf16, fp16 or fp32, and a warning where the settings ask for one that is missing or slow here."""
    if not hardware.has_gpu:
        options: tuple[str, ...] = ("fp32",)
    elif not settings["hardware.precision.auto_detect"]:
        chosen = settings["hardware.precision.fallback"]
        slow = f"{chosen} is not native on {hardware.name}: slow at best"
        return chosen, None if chosen in hardware.precisions else slow
    else:
        fallback = (settings["hardware.precision.fallback"],)
        native = hardware.precisions if hardware.says_precision else fallback
        options = _table_row(hardware.name, settings) or native
    preferred = settings["training.mixed_precision.prefer"]
    if preferred == "auto" or preferred in options:
        return (options[0] if preferred == "auto" else preferred), None
    lacking = f"training.mixed_precision.prefer = {preferred} is not to be had on {hardware.name}"
    return options[0], f"{lacking}: {options[0]}"


def _table_row(name: str, settings: Settings) -> tuple[str, ...]:
    """The precisions that the settings list for a GPU of this name; of several that fit, those of the longest name."""
    table = settings["hardware.precision.supported_dtypes"]
    row = table.get(max((part for part in table if part.lower() in name.lower()), key=len, default=None), ())
    return (row,) if isinstance(row, str) else tuple(row)


@dataclass(frozen=True)
class Package:
    """An installed package, never imported: a broken one must not stop the check. `version` is None where it is not
    installed; `problem` says why an installed one is refused."""

    name: str
    version: str | None
    required: bool
    minimum: str | None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.version is not None and self.problem is None

    def __str__(self) -> str:
        version = (self.version or "not installed") + (f": {self.problem}" if self.problem else "")
        optional = "" if self.required or self.ok else " - optional"
        return f"[{'OK' if self.ok else 'X'}] {self.name} ({version}){optional}"


def find_packages(settings: Settings, broken: Mapping[str, str]) -> tuple[Package, ...]:
    """The required and optional packages of the settings; `broken` maps those that cannot be imported to the reason."""
    required, packages = settings["dependencies.required"], []
    floors = settings["dependencies.min_versions"] if settings["dependencies.version_check"] else {}
    for name in dict.fromkeys([*required, *settings["dependencies.optional"]]):
        version, minimum, problem = None, floors.get(name), None
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name) or None  # None: a damaged installation without metadata
        if version and name in broken:
            problem = f"cannot be imported: {broken[name]}"
        elif version and minimum is not None and version_numbers(version) < version_numbers(minimum):
            problem = f"needs {minimum} or later"
        packages.append(Package(name, version, name in required, minimum, problem))
    return tuple(packages)
