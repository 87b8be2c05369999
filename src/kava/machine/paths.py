"""The folders of models, data, cache, output and checkpoints: a variable, else a cluster's folder, else the project's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kava import outputs
from kava.errors import ConfigError
from kava.machine.settings import PATH_NAMES, Settings

ROOT_VARIABLE = "KAVA_PROJECT_ROOT"
READ_ONLY = ("models", "data")  # may be folders that others fill
BELOW = {"output": "outputs"}  # the folder's name on a cluster, where it differs


@dataclass(frozen=True)
class ProjectPath:
    """One folder, where its path comes from (a variable, a cluster's folder, "default"), and what is wrong with it."""

    name: str
    path: Path
    source: str
    problem: str | None


def project_root(environ: Mapping[str, str], here: Path) -> Path:
    """KAVA_PROJECT_ROOT, which must be a folder, else the current folder."""
    named = environ.get(ROOT_VARIABLE)
    if not named:
        return here
    root = Path(os.path.abspath(here / Path(named).expanduser()))
    if not os.path.isdir(root):
        raise ConfigError(f"{ROOT_VARIABLE} = {named} is not a folder", "make it, or unset the variable")
    return root


def find_paths(settings: Settings, environ: Mapping[str, str], hpc: bool, here: Path) -> tuple[ProjectPath, ...]:
    """The five paths, absolute. Creates nothing."""
    root = project_root(environ, here)
    cluster = _cluster_folder(settings["paths.hpc_patterns"], environ) if hpc else None
    paths = []
    for name in PATH_NAMES:
        variable = settings[f"paths.env_vars.{name}"]
        if environ.get(variable):
            path, source = here / Path(environ[variable]).expanduser(), variable
        elif cluster is not None:
            path, source = cluster / BELOW.get(name, name), str(cluster)
        else:
            path, source = root / Path(settings[f"paths.defaults.{name}"]).expanduser(), "default"
        path = Path(os.path.abspath(path))
        paths.append(ProjectPath(name, path, source, problem_of(path, may_be_read_only=name in READ_ONLY)))
    return tuple(paths)


def _cluster_folder(patterns: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """The first folder of the patterns that exists and can be written."""
    user = next((environ[name] for name in ("USER", "LOGNAME", "USERNAME") if environ.get(name)), None)
    known = [pattern for pattern in patterns if user is not None or "{username}" not in pattern]
    folders = (Path(pattern.replace("{username}", user or "")) for pattern in known)
    return next((path for path in folders if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)), None)


def problem_of(path: Path, may_be_read_only: bool) -> str | None:
    """Why a folder cannot be used or created; None if it can."""
    if may_be_read_only and os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
        return None
    return outputs.problem_of(path, is_folder=True)
