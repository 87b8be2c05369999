"""Checks of the machine: a line each, and what to do about the first that fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kava.machine.detect import Hardware, Package, choose_precision
from kava.machine.paths import ProjectPath
from kava.machine.settings import Settings

MARKS = {"ok": "[OK]", "warning": "[WARNING]", "failed": "[X]", "not run": "[NOT RUN]"}


@dataclass(frozen=True)
class Check:
    """`fix` is what to do, where something is wrong."""

    name: str
    status: Literal["ok", "warning", "failed", "not run"]
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{MARKS[self.status]} {self.name}: {self.detail}"


def check_device(hardware: Hardware, settings: Settings) -> Check:
    """No GPU is never a failure here: whether training may take the CPU is decided when it starts."""
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


def check_paths(paths: Sequence[ProjectPath], settings: Settings) -> Check:
    wrong = [path for path in paths if path.problem]
    if not wrong:
        return Check("Paths", "ok", "all five can be used")
    variables = ", ".join(settings[f"paths.env_vars.{path.name}"] for path in wrong)
    detail = "; ".join(f"{path.name}: {path.path}: {path.problem}" for path in wrong)
    return Check("Paths", "failed", detail, f"give folders that you may write to: export {variables}")


def check_packages(packages: Sequence[Package], torch_error: str | None) -> Check:
    """Fails for required packages only; torch is one, whatever the settings list."""
    name = "Dependencies"
    wrong = [package for package in packages if package.required and not package.ok]
    if torch_error is not None and "torch" not in [package.name for package in wrong]:
        return Check(name, "failed", f"torch cannot be imported: {torch_error}", "bash setup.sh")
    if wrong:
        wanted = " ".join(f"'{p.name}>={p.minimum}'" if p.minimum else p.name for p in wrong)
        return Check(name, "failed", _listed(wrong), f"bash setup.sh, or: pip install --upgrade {wanted}")
    odd = [package for package in packages if package.problem]
    if odd:
        return Check(name, "warning", "optional: " + _listed(odd))
    return Check(name, "ok", "all required packages are installed")


def _listed(packages: Sequence[Package]) -> str:
    return "; ".join(
        f"{package.name} {f'{package.version} {package.problem}' if package.version else 'is not installed'}"
        for package in packages
    )


def next_step(checks: Sequence[Check], launch: str) -> str:
    """The command to type next; `launch` goes before it where there are several GPUs."""
    failed = [check for check in checks if check.status == "failed"]
    return next((check.fix for check in failed or checks if check.fix), f"{launch}kava distill")
