"""Which scheduler a login node has: its commands, and what tells those apart whose commands have the same name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from kava.errors import ConfigError

PBS_CONF = Path("/etc/pbs.conf")
Which = Callable[[str], str | None]


def find_scheduler(environ: Mapping[str, str], pbs_conf: Path = PBS_CONF) -> str:
    """Its name; none, or several, is an error that says what to do."""
    found = present(environ, pbs_conf)
    if not found:
        raise ConfigError(
            "no scheduler is here: none of sbatch, qsub, bsub is on the PATH",
            "go to a login node, name one with --scheduler, or take --scheduler local",
        )
    if len(found) > 1:
        listed = ", ".join(f"{name} ({why})" for name, why in found.items())
        raise ConfigError(f"several schedulers are here: {listed}", f"--scheduler {' or '.join(found)}")
    return next(iter(found))


def present(environ: Mapping[str, str], pbs_conf: Path = PBS_CONF) -> dict[str, str]:
    """Every scheduler that is here, and what says so."""

    def which(name: str) -> str | None:
        return shutil.which(name, path=environ.get("PATH", ""))

    found: dict[str, str] = {}
    if which("sbatch"):
        found["slurm"] = "sbatch"
    if which("bsub"):
        found["lsf"] = "bsub"
    if which("qsub"):
        name, why = _whose_qsub(environ, which, pbs_conf, found)
        if name:
            found[name] = why
    return found


def _whose_qsub(
    environ: Mapping[str, str], which: Which, pbs_conf: Path, found: Mapping[str, str]
) -> tuple[str | None, str]:
    """PBS, Torque, Grid Engine and Cobalt all have a qsub, and Slurm brings one that translates."""
    if environ.get("SGE_ROOT"):
        return "sge", "qsub and SGE_ROOT"
    if which("cqsub") or which("cqstat"):
        return "cobalt", "qsub and cqsub"
    if environ.get("PBS_CONF_FILE") or pbs_conf.is_file():
        return "pbs", "qsub and its pbs.conf"
    said = _version(which("qstat"), environ)
    if "pbs" in said or "openpbs" in said:
        return "pbs", "qsub and what qstat --version says"
    if "version:" in said or "torque" in said:
        return "torque", "qsub and what qstat --version says"
    if "slurm" in found:  # Slurm's own translation
        return None, ""
    raise ConfigError(
        "there is a qsub, and neither SGE_ROOT, pbs.conf, cqsub nor qstat --version says whose it is",
        "name it: --scheduler pbs, torque, sge or cobalt",
    )


def _version(qstat: str | None, environ: Mapping[str, str]) -> str:
    if qstat is None:
        return ""
    try:
        done = subprocess.run(
            [qstat, "--version"], capture_output=True, text=True, timeout=10, check=False, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).lower()
