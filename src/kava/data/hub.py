"""The hub's cache: bringing repositories into it, and saying offline which are there and whole.

    <HF_HUB_CACHE, else HF_HOME/hub>/models--ORG--NAME/{refs/main, snapshots/<commit>/...}, datasets--ORG--NAME alike

`fetch` asks HF_ENDPOINT, downloads what loading needs and nothing else, and moves the branch's name to the new commit
last of all, so that a download that was cut off leaves what was there before. Started again it goes on.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kava.data.generator import BUILT_IN
from kava.data.places import hub_id_of, local_places
from kava.data.shared_store import STORES
from kava.data.sources import OWN, known_source
from kava.errors import DataError, KavaError, ModelError, RunError

DEFAULT_CACHE = Path("~/.cache/huggingface/hub")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")  # configuration, tokenizer; code is not run unasked
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
    """What of a repository is to be in the cache, and what of that is not there yet."""

    repo: Repo
    commit: str
    files: tuple[File, ...]
    missing: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.missing)


# -- in the cache ------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """The hub's cache of this process."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: Repo) -> Path | None:
    """The folder with the files of a repository's revision, as the cache has it."""
    store = cache() / repo.folder
    name = store / "refs" / repo.revision
    commit = name.read_text(encoding="utf-8").strip() if name.is_file() else repo.revision
    found = store / "snapshots" / commit
    return found if found.is_dir() else None


def elsewhere(repo: Repo) -> Path | None:
    """Another cache on this machine that has the repository."""
    named = [Path(os.environ[name]) / part for name in STORES if os.environ.get(name) for part in ("", "hub")]
    for place in (*named, Path("cache"), DEFAULT_CACHE):
        found = place.expanduser().resolve()
        if found != cache().resolve() and (found / repo.folder / "snapshots").is_dir():
            return found
    return None


def absent(repo: Repo) -> str:
    """That a repository is not in the cache, and where it is instead."""
    other = elsewhere(repo)
    where = f"; there is one in {other}: export HF_HUB_CACHE={other}" if other else ""
    return f"not in the hub's cache {cache()}{where}"


def missing_parts(folder: Path) -> list[str]:
    """The files that others of the folder say should be there: every part of x-00001-of-00004."""
    lacking = []
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.exists()}
    for name in sorted(names):
        if found := _PART.fullmatch(name):
            count = int(found["count"])
            every = (f"{found['stem']}{i:05d}-of-{count:05d}{found['rest']}" for i in range(count + 1))
            first = 0 if f"{found['stem']}00000-of-{count:05d}{found['rest']}" in names else 1
            lacking += [part for i, part in enumerate(every) if first <= i < first + count and part not in names]
    return list(dict.fromkeys(lacking))


def model_repo(name: str, revision: str | None) -> Repo | None:
    """What a model is on the hub; None where it is shipped or a folder."""
    path = name.startswith((".", "/", "~", "kava:")) or name.count("/") > 1 or Path(name).is_dir()
    return None if path else Repo(name, "model", revision or "main")


def data_repo(name: str, config: str | None) -> tuple[Repo, str | None] | None:
    """What a data set is on the hub, and which configuration; None where it is built in, a path or in ./datasets."""
    source = known_source(name) or OWN
    hub_id = hub_id_of(name, source)
    if name in BUILT_IN or hub_id is None or any(place.exists() for place in local_places(name, source)):
        return None
    return Repo(hub_id, "dataset"), config or source.config


# -- from the hub ------------------------------------------------------------------------------------------------------


def plan(repo: Repo, config: str | None = None) -> DownloadPlan:
    """Asks the hub what the repository has. `config`: of a data set with a folder of that name, this folder only."""
    from huggingface_hub import HfApi

    with _asking(repo):
        ask = HfApi().model_info if repo.kind == "model" else HfApi().dataset_info
        info = ask(repo.name, revision=repo.revision, files_metadata=True)
    every = [File(one.rfilename, one.size or 0) for one in info.siblings or []]
    files = model_files(every) if repo.kind == "model" else data_files(every, config)
    if not files:
        what = "weights that can be loaded (safetensors)" if repo.kind == "model" else "files"
        raise repo.error(f"{repo.kind} {repo.name} has no {what} on the hub", "check the name")
    commit = str(info.sha)
    there = cache() / repo.folder / "snapshots" / commit
    missing = [file for file in files if not (there / file.name).exists()]
    return DownloadPlan(repo, commit, tuple(files), tuple(missing))


def model_files(files: Sequence[File]) -> list[File]:
    """What transformers loads: one form of the weights, configuration and tokenizer, no copies for other programs."""
    top = [file for file in files if "/" not in file.name]
    weights = [file for pattern in (_WEIGHTS, _PICKLED) for file in top if pattern.fullmatch(file.name)]
    if not weights:
        return []
    safe = weights[0].name.endswith(".safetensors")
    chosen = [file for file in weights if file.name.endswith(".safetensors") == safe]
    beside = [file for file in top if file.name.endswith(_BESIDE)]
    return [*beside, *chosen]


def data_files(files: Sequence[File], config: str | None) -> list[File]:
    """All of them, or one configuration's folder and what lies above it."""
    kept = [file for file in files if not file.name.rpartition("/")[2].startswith(".")]
    if config is not None and any(file.name.startswith(config + "/") for file in kept):
        return [file for file in kept if "/" not in file.name or file.name.startswith(config + "/")]
    return kept


def fetch(planned: DownloadPlan, progress: bool = True) -> Path:
    """Downloads what is missing and returns the snapshot's folder."""
    from huggingface_hub import hf_hub_download

    repo = planned.repo
    cache().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache()).free
    if planned.bytes > free:
        raise RunError(
            f"{repo.kind} {repo.name} needs {planned.bytes / 1e9:.1f} GB more, {cache()} has {free / 1e9:.1f} GB",
            "choose another --cache_dir",
        )
    given: dict[str, Any] = {"repo_type": repo.kind, **_bars(hf_hub_download, progress)}
    with _asking(repo):
        for file in planned.files:
            hf_hub_download(repo.name, file.name, revision=planned.commit, **given)
        if repo.revision != planned.commit:
            hf_hub_download(repo.name, planned.files[0].name, revision=repo.revision, **given)
    return cache() / repo.folder / "snapshots" / planned.commit


def _bars(download: Callable[..., Any], progress: bool) -> dict[str, Any]:
    """The hub's bars in ASCII, or none. Before its version 1 the library takes none of ours and draws its own."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import tqdm as hub_tqdm

    if not progress:
        disable_progress_bars()
        return {}

    class Bar(hub_tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any):
            super().__init__(*given, **{**named, "ascii": True, "delay": 1.0})

    return {"tqdm_class": Bar} if "tqdm_class" in inspect.signature(download).parameters else {}


@contextmanager
def _asking(repo: Repo) -> Iterator[None]:
    """What goes wrong between here and the hub, in one line."""
    from huggingface_hub import constants, errors

    network = getattr(errors, "HTTPError", OSError)  # of the http library that this version is built on
    shown = f"{repo.kind} {repo.name}" + ("" if repo.revision == "main" else f" ({repo.revision})")
    try:
        yield
    except errors.GatedRepoError as error:
        raise repo.error(
            f"{shown} is gated: its licence has to be accepted, and the hub has to know who asks",
            "accept it on the model's page, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private one needs: hf auth login"
        raise repo.error(f"{constants.ENDPOINT} has no {shown}", hint) from error
    except errors.RevisionNotFoundError as error:
        raise repo.error(f"{repo.kind} {repo.name} has no revision {repo.revision}", "check its name") from error
    except errors.OfflineModeIsEnabled as error:
        raise repo.error(f"{shown}: {absent(repo)}", "HF_HUB_OFFLINE is set: unset it where a network is") from error
    except (OSError, ValueError, network) as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno != errno.ECONNREFUSED:
            raise  # the disk's, not the hub's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise repo.error(
            f"{shown} cannot be fetched from {constants.ENDPOINT}: {reason}",
            "fetch where a network is (a login node), through a mirror (HF_ENDPOINT) or a proxy (https_proxy)",
        ) from error
