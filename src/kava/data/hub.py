"""The hub's cache: where it is, downloading repositories into it, and checking offline which are complete.

    <HF_HUB_CACHE, else HF_HOME/hub>/models--ORG--NAME/{refs/main, snapshots/<commit>/...}, datasets--ORG--NAME alike

`fetch` downloads from HF_ENDPOINT only the files that loading needs, and updates the branch's ref last, so that an
interrupted download leaves the old revision usable. Started again it continues.
"""

import errno
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kava.errors import ConfigError, DataError, KavaError, ModelError, RunError, first_line
from kava.files import looks_like_path, make_folder
from kava.progress import Meter
from kava.progress import progress as progress_of

HUB_CACHE = "HF_HUB_CACHE"
CACHES = (HUB_CACHE, "HF_DATASETS_CACHE")
MB = 10**6
STORES = ("HF_HOME", "TRANSFORMERS_CACHE")  # the second: the model cache of transformers 4
DEFAULT_CACHE = Path("~/.cache/huggingface/hub")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")  # configuration, tokenizer, code
_PART = re.compile(r"(?P<stem>.+-)(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>\..+)")


@dataclass(frozen=True)
class Repo:
    """A repository of the hub; its revision is a branch, a tag or a commit."""

    name: str
    kind: Literal["model", "dataset"]
    revision: str = "main"

    @property
    def folder(self) -> str:
        """Its folder in a cache."""
        return f"{self.kind}s--{self.name.replace('/', '--')}"

    def error(self, message: str, hint: str) -> KavaError:
        return (ModelError if self.kind == "model" else DataError)(message, hint)


@dataclass(frozen=True)
class File:
    name: str
    size: int


@dataclass(frozen=True)
class DownloadPlan:
    """The files of a repository that the cache needs, and those still missing."""

    repo: Repo
    commit: str
    files: tuple[File, ...]
    missing: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.missing)


# -- where the cache is, set before any library of the hub is imported, since they read it only then ---------------------


def take_shared_store(environ: MutableMapping[str, str]) -> None:
    """Sets HF_HUB_CACHE to the folder named by a variable of STORES, if models--ORG--NAME are directly in it.

    The hub's library searches only its sub-folder `hub`. If that exists, or HF_HUB_CACHE is set, nothing changes.
    """
    if environ.get(HUB_CACHE) or environ.get("HUGGINGFACE_HUB_CACHE"):
        return
    for name in STORES:
        folder = Path(environ.get(name, "")).expanduser()
        if environ.get(name) and not (folder / "hub").is_dir() and any(folder.glob("models--*")):
            environ[HUB_CACHE] = str(folder)
            return


def move_cache(folder: str, environ: MutableMapping[str, str]) -> None:
    """Makes `folder` the hub's cache of this process."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and str(constants.HF_HUB_CACHE) != folder:
        raise ConfigError(
            f"the hub's cache cannot be moved to {folder}: it is in use at {constants.HF_HUB_CACHE}",
            "set HF_HUB_CACHE before Python starts",
        )
    environ.update(dict.fromkeys(CACHES, folder))


# -- in the cache ------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """The hub's cache of this process."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: Repo) -> Path | None:
    """The cache's folder with the files of a repository's revision, or None."""
    store = cache() / repo.folder
    name = store / "refs" / repo.revision
    commit = name.read_text(encoding="utf-8").strip() if name.is_file() else repo.revision
    folder = store / "snapshots" / commit
    return folder if folder.is_dir() else None


def elsewhere(repo: Repo) -> Path | None:
    """Another cache on this machine that has the repository."""
    configured = [Path(os.environ[name]) / part for name in STORES if os.environ.get(name) for part in ("", "hub")]
    for path in (*configured, Path("cache"), DEFAULT_CACHE):
        other = path.expanduser().resolve()
        if other != cache().resolve() and (other / repo.folder / "snapshots").is_dir():
            return other
    return None


def absent(repo: Repo) -> str:
    """A message that a repository is not in the cache, and in which other cache it is."""
    other = elsewhere(repo)
    where = f"; there is one in {other}: export HF_HUB_CACHE={other}" if other else ""
    return f"not in the hub's cache {cache()}{where}"


def missing_parts(folder: Path) -> list[str]:
    """Missing parts of sharded files: those of x-00001-of-00004 that the folder lacks."""
    lacking = []
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.exists()}
    for name in sorted(names):
        if match := _PART.fullmatch(name):
            count = int(match["count"])
            every = [f"{match['stem']}{i:05d}-of-{count:05d}{match['rest']}" for i in range(count + 1)]
            first = 0 if every[0] in names else 1
            lacking += [part for i, part in enumerate(every) if first <= i < first + count and part not in names]
    return list(dict.fromkeys(lacking))


def model_repo(name: str, revision: str | None) -> Repo | None:
    """The hub repository of a model; None if it is shipped or a folder."""
    path = name.startswith("kava:") or looks_like_path(name) or Path(name).is_dir()
    return None if path else Repo(name, "model", revision or "main")


# -- from the hub ------------------------------------------------------------------------------------------------------


def plan(
    repo: Repo, part: str | None = None, chosen: Callable[[Sequence[File]], list[File]] | None = None
) -> DownloadPlan:
    """The download plan of a repository, from the hub. `part`: of a dataset only this folder, if it exists; of a model
    the .gguf file that holds its weights. `chosen` picks the files of something else than a model or a dataset."""
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        ask = HfApi().model_info if repo.kind == "model" else HfApi().dataset_info
        info = ask(repo.name, revision=repo.revision, files_metadata=True)
    every = [File(entry.rfilename, entry.size or 0) for entry in info.siblings or []]
    if chosen is not None:
        files = chosen(every)
    else:
        files = model_files(every, part) if repo.kind == "model" else data_files(every, part)
    if not files:
        if part is not None:
            names = ", ".join(file.name for file in every if file.name.endswith(".gguf")) or "none"
            raise repo.error(
                f"model {repo.name} has no {part} on the hub; its .gguf files: {names}", "name one of them"
            )
        what = "weights that can be loaded (safetensors)" if repo.kind == "model" else "files"
        raise repo.error(f"{repo.kind} {repo.name} has no {what} on the hub", "check the name")
    commit = str(info.sha)
    folder = cache() / repo.folder / "snapshots" / commit
    missing = [file for file in files if not (folder / file.name).exists()]
    return DownloadPlan(repo, commit, tuple(files), tuple(missing))


def model_files(files: Sequence[File], gguf_file: str | None = None) -> list[File]:
    """The files that transformers loads: one format of the weights (or `gguf_file`), configuration and tokenizer."""
    if gguf_file is not None:
        return [file for file in files if file.name == gguf_file]
    top = [file for file in files if "/" not in file.name]
    weights = [file for pattern in (_WEIGHTS, _PICKLED) for file in top if pattern.fullmatch(file.name)]
    if not weights:
        return []
    safe = weights[0].name.endswith(".safetensors")
    chosen = [file for file in weights if file.name.endswith(".safetensors") == safe]
    beside = [file for file in top if file.name.endswith(_BESIDE)]
    return [*beside, *chosen]


def data_files(files: Sequence[File], config: str | None) -> list[File]:
    """All files, or one configuration's folder and the files above it."""
    kept = [file for file in files if not file.name.rpartition("/")[2].startswith(".")]
    if config is not None and any(file.name.startswith(config + "/") for file in kept):
        return [file for file in kept if "/" not in file.name or file.name.startswith(config + "/")]
    return kept


def fetch(planned: DownloadPlan, progress: bool = True) -> Path:
    """Downloads the missing files and returns the snapshot's folder."""
    from huggingface_hub import hf_hub_download

    repo = planned.repo
    make_folder(cache())
    free = shutil.disk_usage(cache()).free
    if planned.bytes > free:
        raise RunError(
            f"{repo.kind} {repo.name} needs {planned.bytes / 1e9:.1f} GB more, {cache()} has {free / 1e9:.1f} GB",
            "choose another --cache_dir",
        )
    with _hub_errors(repo), progress_of(f"downloading {repo.name}", planned.bytes // MB, "MB", progress) as meter:
        options: dict[str, Any] = {"repo_type": repo.kind, **_counting(hf_hub_download, meter)}
        for file in planned.files:
            hf_hub_download(repo.name, file.name, revision=planned.commit, **options)
        if repo.revision != planned.commit:
            hf_hub_download(repo.name, planned.files[0].name, revision=repo.revision, **options)
    return cache() / repo.folder / "snapshots" / planned.commit


def _counting(download: Callable[..., Any], meter: Meter) -> dict[str, Any]:
    """Arguments that count what arrives on the meter; before huggingface_hub 1 only the time can be shown."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import tqdm as hub_tqdm

    if "tqdm_class" not in inspect.signature(download).parameters:
        disable_progress_bars()
        return {}
    arrived = [0]

    class Count(hub_tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            arrived[0] += int(n or 0)
            meter.done = arrived[0] // MB
            return None

    return {"tqdm_class": Count}


@contextmanager
def _hub_errors(repo: Repo) -> Iterator[None]:
    """Turns errors of the hub and the network into a one-line error."""
    from huggingface_hub import constants, errors

    network = getattr(errors, "HTTPError", OSError)  # of the HTTP library of this version
    label = f"{repo.kind} {repo.name}" + ("" if repo.revision == "main" else f" ({repo.revision})")
    try:
        yield
    except errors.GatedRepoError as error:
        raise repo.error(
            f"{label} is gated: its licence has to be accepted, and the hub has to know who asks",
            "accept it on the model's page, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private one needs: hf auth login"
        raise repo.error(f"{constants.ENDPOINT} has no {label}", hint) from error
    except errors.RevisionNotFoundError as error:
        raise repo.error(f"{repo.kind} {repo.name} has no revision {repo.revision}", "check its name") from error
    except errors.OfflineModeIsEnabled as error:
        raise repo.error(f"{label}: {absent(repo)}", "HF_HUB_OFFLINE is set: unset it where a network is") from error
    except (OSError, ValueError, network) as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno != errno.ECONNREFUSED:
            raise  # an error of the disk, not of the hub
        raise repo.error(
            f"{label} cannot be fetched from {constants.ENDPOINT}: {first_line(error)}",
            "fetch where a network is (a login node), through a mirror (HF_ENDPOINT) or a proxy (https_proxy)",
        ) from error
