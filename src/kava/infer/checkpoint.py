"""Where a student is: a folder on this machine, or owner/name on the hub, downloaded into the hub's cache. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kava.backbone.card import CARD, EXPORT, SHARDS
from kava.data.hub import File, Repo, absent, cache, fetch, plan, snapshot
from kava.errors import CheckpointError, ConfigError, ModelError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NOT_READ = (".md", ".png", ".svg", ".pdf")


def is_hub_name(name: str | Path) -> bool:
    """Whether this is owner/name rather than a path: nothing of it is here, and it is not called as runs call students."""
    if not isinstance(name, str | Path) or Path(name).exists() or Path(name).parent.is_dir():
        return False
    text = Path(name).as_posix()
    last = PurePosixPath(text).name
    return HUB_NAME.fullmatch(text) is not None and not last.startswith(("best_checkpoint", "checkpoint-"))


def checkpoint_folder(name: str | Path, revision: str | None = None, progress: bool = True) -> Path:
    """The folder of a student: `name` itself, or the cache's copy of owner/name at `revision` (default: main).

    Without a network (HF_HUB_OFFLINE) the copy that the cache has. Its hashes are checked where it is loaded.
    """
    if not isinstance(name, str | Path):
        raise CheckpointError(f"a {type(name).__name__} is no student's folder", "give its path")
    if not is_hub_name(name):
        if revision is not None:
            raise ConfigError(
                f"revision {revision!r} has no effect on the folder {name}", "it is for owner/name on the hub"
            )
        return Path(name)
    from huggingface_hub import constants

    repo = Repo(Path(name).as_posix(), "model", revision or "main")
    if constants.HF_HUB_OFFLINE:
        folder = snapshot(repo)
        if folder is None:
            hint = "give a student's folder, or unset HF_HUB_OFFLINE where a network is"
            raise CheckpointError(
                f"checkpoint {name} does not exist; as a student of the hub it is {absent(repo)}", hint
            )
        return folder
    try:
        return fetch(plan(repo, chosen=_student_files), progress)
    except ModelError as error:
        raise CheckpointError(
            f"checkpoint {name} does not exist; as a student of the hub: {error.message}", error.hint
        ) from error


def on_hub(folder: Path) -> bool:
    """Whether a student's folder is the hub cache's copy."""
    return folder.resolve().is_relative_to(cache().resolve())


def _student_files(files: Sequence[File]) -> list[File]:
    """The files of a student among those of a repository."""
    names = {file.name for file in files}
    if CARD not in names:
        raise ModelError(*_no_student(names))
    top = [file for file in files if "/" not in file.name and file.name[0] != "." and not file.name.endswith(NOT_READ)]
    return [*top, *(file for file in files if file.name.startswith(f"{SHARDS}/"))]


def _no_student(names: set[str]) -> tuple[str, str]:
    if EXPORT in names:
        return "it is a merged folder and no student", "transformers answers with it; how stands in its README.md"
    if "config.json" in names:
        return (
            f"it is a model of transformers and no student: it has no {CARD}",
            "train a student from it: model.name=owner/name",
        )
    return f"it is no student: it has no {CARD}", "check the name"
