"""The scheduler of a login node: by its commands, and for a qsub by what tells the five that have one apart."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.errors import ConfigError

PBS_CONF = Path("/etc/pbs.conf")


def installed_scheduler(environ: Mapping[str, str], pbs_conf: Path = PBS_CONF) -> str:
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
    path = environ.get("PATH", "")
    names = {
        name: command for name, command in (("slurm", "sbatch"), ("lsf", "bsub")) if shutil.which(command, path=path)
    }
    if shutil.which("qsub", path=path):
        name, reason = _owner_of_qsub(environ, path, pbs_conf)
        if name:
            names[name] = reason
        elif "slurm" not in names:  # else it is Slurm's own wrapper
            raise ConfigError(
                "there is a qsub, and neither SGE_ROOT, pbs.conf, cqsub nor qstat --version says whose it is",
                "name it: --scheduler pbs, torque, sge or cobalt",
            )
    return names


def _owner_of_qsub(environ: Mapping[str, str], path: str, pbs_conf: Path) -> tuple[str, str]:
    """The scheduler that qsub belongs to, PBS, Torque, Grid Engine or Cobalt, and the evidence; "" where nothing says so."""
    if environ.get("SGE_ROOT"):
        return "sge", "qsub and SGE_ROOT"
    if shutil.which("cqsub", path=path) or shutil.which("cqstat", path=path):
        return "cobalt", "qsub and cqsub"
    if environ.get("PBS_CONF_FILE") or pbs_conf.is_file():
        return "pbs", "qsub and its pbs.conf"
    version = _version(shutil.which("qstat", path=path), environ)
    words = {"pbs": "pbs", "version:": "torque", "torque": "torque"}
    name = next((name for word, name in words.items() if word in version), "")
    return name, "qsub and what qstat --version says"


def _version(qstat: str | None, environ: Mapping[str, str]) -> str:
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "env": dict(environ)}
    try:
        process = subprocess.run([qstat, "--version"], **how, check=False) if qstat else None
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (process.stdout + process.stderr).lower() if process else ""
