"""What was found, judged: a line per check, and what to do about the first that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kava.machine.dependencies import Package
from kava.machine.detect import Hardware, choose_precision
from kava.machine.paths import Place
from kava.machine.settings import Settings


@dataclass(frozen=True)
class Check:
    """`fix` is what to do, where something is wrong."""

    name: str
    status: Literal["ok", "warning", "failed", "not run"]
    detail: str
    fix: str = ""


def check_device(hardware: Hardware, settings: Settings) -> Check:
    """No GPU is never a failure here: whether a run may take the CPU is asked when a run starts."""
    name = "Device"
    if hardware.error is not None:
        fix = 'mend the driver, or hide the GPU: export CUDA_VISIBLE_DEVICES=""'
        return Check(name, "failed", f"the GPU does not answer: {hardware.error}", fix)
    if hardware.device == "UNKNOWN":
        return Check(name, "not run", "torch is needed to look for a GPU")
    if not hardware.has_gpu:
        why = f" ({hardware.hint})" if hardware.hint else ""
        if settings.cpu_allowed():
            return Check(name, "warning", f"no GPU{why}; runs use the CPU")
        detail = f"no GPU{why}, and the settings forbid to take the CPU for it"
        return Check(name, "warning", detail, "kava distill --device cpu")
    note = choose_precision(hardware, settings)[1]
    return Check(name, "warning" if note else "ok", note or f"{hardware.device}, {hardware.name}")


def check_paths(places: Sequence[Place], settings: Settings) -> Check:
    wrong = [place for place in places if place.problem]
    if not wrong:
        return Check("Paths", "ok", "all five can be used")
    variables = ", ".join(settings[f"paths.env_vars.{place.name}"] for place in wrong)
    detail = "; ".join(f"{place.name}: {place.path}: {place.problem}" for place in wrong)
    return Check("Paths", "failed", detail, f"give folders that you may write to: export {variables}")


def check_packages(packages: Sequence[Package], torch_error: str | None) -> Check:
    """Fails for required packages only; torch is one, whatever the settings list."""
    name = "Dependencies"
    wrong = [package for package in packages if package.required and not package.ok]
    if torch_error is not None and "torch" not in [package.name for package in wrong]:
        return Check(name, "failed", f"torch cannot be imported: {torch_error}", "bash setup.sh")
    if wrong:
        wanted = " ".join(f"'{one.name}>={one.minimum}'" if one.minimum else one.name for one in wrong)
        return Check(name, "failed", _listed(wrong), f"bash setup.sh, or: pip install --upgrade {wanted}")
    odd = [package for package in packages if package.problem]
    if odd:
        return Check(name, "warning", "optional: " + _listed(odd))
    return Check(name, "ok", "all required packages are installed")


def _listed(packages: Sequence[Package]) -> str:
    return "; ".join(
        f"{one.name} {f'{one.version} {one.problem}' if one.version else 'is not installed'}" for one in packages
    )


def next_step(checks: Sequence[Check], launch: str) -> str:
    """What to type now; `launch` is what stands before the command where there are several GPUs."""
    failed = [check for check in checks if check.status == "failed"]
    return next((check.fix for check in failed or checks if check.fix), f"{launch}kava distill")
