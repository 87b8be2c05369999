"""The environment report as text: the same lines on every machine, ASCII but for names of folders and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.machine.checks import Check
from kava.machine.dependencies import Package
from kava.machine.detect import Hardware, System
from kava.machine.paths import ProjectPath

RULE = "=" * 70
MARKS = {"ok": "[OK]", "warning": "[WARNING]", "failed": "[X]", "not run": "[NOT RUN]"}


def report_text(
    system: System, hardware: Hardware, precision: str | None, paths: Sequence[ProjectPath], packages: Sequence[Package]
) -> str:
    """Four sections: environment, hardware, paths, dependencies."""
    scheduler = [f"   Scheduler: {system.scheduler.upper()}"] if system.scheduler else []
    return "\n".join(
        [
            "[Environment Detection Report]",
            RULE,
            f"[Environment Type]: {system.type.upper()}",
            *scheduler,
            f"   Platform: {system.platform}",
            f"   Hostname: {system.hostname}",
            f"   CPU Cores: {system.cpu_cores}",
            "",
            *_hardware(hardware, precision),
            "",
            "[Path Configuration]:",
            *(f"   {path.name}: {path.path}" for path in paths),
            "",
            "[Dependencies]:",
            *(f"   {_package(package)}" for package in packages),
        ]
    )


def _hardware(hardware: Hardware, precision: str | None) -> list[str]:
    known = hardware.device != "UNKNOWN"
    bf16 = ("YES" if "bf16" in hardware.precisions else "NO") if known else "unknown"
    return [
        "[Hardware Configuration]:",
        f"   Device: {hardware.device}",
        f"   Name: {hardware.name}",
        f"   GPUs: {hardware.gpus if known else 'unknown'}",
        f"   Memory: {'unknown' if hardware.memory is None else f'{hardware.memory:.1f} GB'}",
        f"   Precision: {precision.upper() if precision else 'unknown'}",
        f"   BF16 Support: {bf16}",
    ]


def _package(package: Package) -> str:
    version = package.version or "not installed"
    if package.problem:
        version += f": {package.problem}"
    optional = "" if package.required or package.ok else " - optional"
    return f"[{'OK' if package.ok else 'X'}] {package.name} ({version}){optional}"


def checks_text(checks: Sequence[Check]) -> str:
    return "\n".join(["[Checks]:", *(f"   {check_line(check)}" for check in checks)])


def check_line(check: Check) -> str:
    return f"{MARKS[check.status]} {check.name}: {check.detail}"


def config_text(config: Mapping[str, Any]) -> str:
    """The recommended settings, a line each; the paths are in the report."""
    lines = [f"   {name}: {_plain(value)}" for name, value in config.items() if name != "paths"]
    return "\n".join(["[Recommended Configuration]:", *lines])


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
