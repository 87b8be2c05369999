"""The scheduler of a login node: by its commands, and for a qsub by what tells the five that have one apart."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from kava.errors import ConfigError

PBS_CONF = Path("/etc/pbs.conf")


def find_scheduler(environ: Mapping[str, str], pbs_conf: Path = PBS_CONF) -> str:
    """The name of the scheduler; none, or several, is an error that says what to do."""
    names = present(environ, pbs_conf)
    if not names:
        raise ConfigError(
            "no scheduler is here: none of sbatch, qsub, bsub is on the PATH",
            "go to a login node, name one with --scheduler, or take --scheduler local",
        )
    if len(names) > 1:
        listed = ", ".join(f"{name} ({reason})" for name, reason in names.items())
        raise ConfigError(f"several schedulers are here: {listed}", f"--scheduler {' or '.join(names)}")
    return next(iter(names))


def present(environ: Mapping[str, str], pbs_conf: Path = PBS_CONF) -> dict[str, str]:
    """The name of every scheduler on this machine, and the evidence for it."""

    def which(name: str) -> str | None:
        return shutil.which(name, path=environ.get("PATH", ""))

    names = {name: command for name, command in (("slurm", "sbatch"), ("lsf", "bsub")) if which(command)}
    if which("qsub"):
        name, reason = _owner_of_qsub(environ, which, pbs_conf, "slurm" in names)
        names |= {name: reason} if name else {}
    return names


def _owner_of_qsub(
    environ: Mapping[str, str], which: Callable[[str], str | None], pbs_conf: Path, slurm: bool
) -> tuple[str, str]:
    """The scheduler that qsub belongs to: PBS, Torque, Grid Engine, Cobalt, or "" for Slurm's own wrapper."""
    if environ.get("SGE_ROOT"):
        return "sge", "qsub and SGE_ROOT"
    if which("cqsub") or which("cqstat"):
        return "cobalt", "qsub and cqsub"
    if environ.get("PBS_CONF_FILE") or pbs_conf.is_file():
        return "pbs", "qsub and its pbs.conf"
    version = _version(which("qstat"), environ)
    if "pbs" in version:
        return "pbs", "qsub and what qstat --version says"
    if "version:" in version or "torque" in version:
        return "torque", "qsub and what qstat --version says"
    if slurm:
        return "", ""
    raise ConfigError(
        "there is a qsub, and neither SGE_ROOT, pbs.conf, cqsub nor qstat --version says whose it is",
        "name it: --scheduler pbs, torque, sge or cobalt",
    )


def _version(qstat: str | None, environ: Mapping[str, str]) -> str:
    if qstat is None:
        return ""
    try:
        process = subprocess.run(
            [qstat, "--version"], capture_output=True, text=True, timeout=10, check=False, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (process.stdout + process.stderr).lower()
