"""Uploads a student to the hub: its files and its model card in one commit, so that a branch is never half new."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kava.backbone.card import CARD, EXPORT, SHARDS, StudentCard, file_hash
from kava.errors import ConfigError, KavaError, RunError, first_line
from kava.infer.checkpoint import HUB_NAME
from kava.infer.checks import STUDENT_FILES
from kava.progress import progress as progress_of
from kava.share.card import Form, model_card
from kava.share.facts import student_facts
from kava.stop_signals import Stopped

if TYPE_CHECKING:
    from huggingface_hub import HfApi

README = "README.md"
MARKS = (CARD, EXPORT)  # files by which a student, or a merged one, is known
OF_THE_HUB = (".gitattributes", README)  # in a repository that holds nothing else it is new
LOGIN = "hf auth login, or set HF_TOKEN, with a token that may write"
AGAIN = "nothing was committed: the branch is as it was; run the command again"


@dataclass(frozen=True)
class Upload:
    """What is uploaded: name in the repository -> file on this machine, and the text of README.md."""

    files: dict[str, Path]
    card: str

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values()) + len(self.card.encode())


@dataclass(frozen=True)
class Pushed:
    """`url` and `commit` are None after a dry run; `removed`: files of an earlier push that are gone now."""

    repo: str
    url: str | None
    commit: str | None
    private: bool | None
    files: dict[str, int]
    removed: tuple[str, ...]
    card: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {name: getattr(self, name) for name in ("repo", "url", "commit", "private", "files", "card")}
        return facts | {"removed": list(self.removed)}


def push(
    checkpoint: str | Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    licence: str | None = None,
    merged: bool = False,
    dtype: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Pushed:
    """Uploads a student's folder to the model repository `repo`, owner/name, with a card made from its run's files.

    private     of a repository that does not exist yet; one that does keeps its visibility
    revision    a branch, made if there is none; None: main
    licence     an identifier of the hub, such as apache-2.0; None: the card says that it was not stated
    merged      upload the folder that `kava export` makes, which transformers alone answers with, in place of the student's
                own; `base` and `trust_remote_code` are for loading the student, as in Student.from_pretrained
    dtype       of the merged weights: float32, bfloat16 or float16; None: as they are
    overwrite   go on where the repository has files that kava did not upload
    dry_run     make the card and list the files; nothing is asked of the hub
    """
    check_name(repo)
    folder = Path(checkpoint)
    facts = student_facts(folder)
    how = (repo, private, revision, overwrite, dry_run, progress)
    if not merged:
        of_merged = {"base": base is not None, "dtype": dtype is not None, "trust_remote_code": trust_remote_code}
        if idle := [name for name, is_set in of_merged.items() if is_set]:
            problem = f"{' and '.join(idle)} cannot be heeded: the student is uploaded as it is"
            raise ConfigError(problem, "leave out, or add --merged (in Python merged=True)")
        return send(Upload(student_upload(folder, facts.card), model_card(facts, Form(repo), licence)), *how)
    from kava.export.folder import export_folder

    with TemporaryDirectory() as place:
        whole = Path(place) / "merged"
        made = export_folder(folder, whole, dtype, base=base, trust_remote_code=trust_remote_code)
        names = {path.relative_to(whole).as_posix(): path for path in sorted(whole.rglob("*")) if path.is_file()}
        generate = file_hash(whole / "custom_generate" / "generate.py")
        return send(Upload(names, model_card(facts, Form(repo, True, generate, made.dtype), licence)), *how)


def check_name(repo: str) -> None:
    """Refuses a name that the hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        fits = HUB_NAME.fullmatch(repo) is not None
    except HFValidationError:
        fits = False
    if not fits:
        raise ConfigError(f"{repo!r} is no name of a repository", "give owner/name: letters, digits, - _ and .")


def student_upload(folder: Path, card: StudentCard) -> dict[str, Path]:
    """The files of a student: those that its card lists, and the card. A checkpoint's training state stays here."""
    if card.files is None:
        raise ConfigError(
            f"{folder} has no hashes (an earlier kava wrote it): its files cannot be listed", "save it again"
        )
    parts = [f"{SHARDS}/{name}" for name in card.shards or {}]
    return {name: folder / name for name in sorted([CARD, *card.files, *parts]) if name != README}


def send(
    upload: Upload, repo: str, private: bool, revision: str | None, overwrite: bool, dry_run: bool, progress: bool
) -> Pushed:
    """One commit with all of it, on top of the commit that the branch had; files of an earlier push that are not part of
    it are deleted in the same commit."""
    sizes = {name: path.stat().st_size for name, path in upload.files.items()} | {README: len(upload.card.encode())}
    if dry_run:
        return Pushed(repo, None, None, None, sizes, (), upload.card)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars, get_token

    if not get_token():
        raise ConfigError("there is no token of the hub on this machine", LOGIN)
    disable_progress_bars()
    api = HfApi()
    with _hub_errors(repo), progress_of(f"uploading {repo}, {upload.bytes / 1e6:.1f} MB", show=progress):
        api.whoami()  # a wrong token is a wrong token, not a repository that cannot be seen
        names, parent, visibility = _prepare(api, repo, private, revision, overwrite)
        removed = _stale(names, sizes)
        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
        operations += [CommitOperationAdd(README, upload.card.encode()), *map(CommitOperationDelete, removed)]
        message = "Upload a student with kava"
        info = api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=parent)
    return Pushed(repo, f"{api.endpoint}/{repo}", info.oid, visibility, sizes, tuple(removed), upload.card)


def _prepare(
    api: "HfApi", repo: str, private: bool, revision: str | None, overwrite: bool
) -> tuple[list[str], str | None, bool]:
    """The repository's files on the branch, the branch's commit and whether it is private; it and the branch are made if
    there are none."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        info = api.model_info(repo)
    if revision is not None:
        try:
            info = api.model_info(repo, revision=revision)
        except RevisionNotFoundError:
            api.create_branch(repo, branch=revision)
            info = api.model_info(repo, revision=revision)
    names = [entry.rfilename for entry in info.siblings or []]
    foreign = [name for name in names if name not in OF_THE_HUB]
    if foreign and not _of_ours(names) and not overwrite:
        problem = f"{repo} has files that kava did not upload, such as {foreign[0]}"
        raise RunError(problem, "choose another name, or --overwrite to put the student beside them")
    return names, info.sha, bool(info.private)


def _of_ours(names: Collection[str]) -> bool:
    return any(name in names for name in MARKS)


def _stale(names: Sequence[str], new: Collection[str]) -> list[str]:
    """The files that an earlier push made and that this one does not have; what a user has put beside them stays."""
    patterns = (*STUDENT_FILES, *MARKS, f"{SHARDS}/*", "custom_generate/*", "*.safetensors*")
    old = [name for name in names if name not in new] if _of_ours(names) else []
    return [name for name in old if any(fnmatch(name, pattern) for pattern in patterns)]


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns errors of the hub and the network, and a signal, into one line each. A token is in none of them."""
    from huggingface_hub import constants, errors

    network = getattr(errors, "HTTPError", OSError)  # of the HTTP library of this version
    try:
        yield
    except Stopped as stop:
        stop.hint = AGAIN
        raise
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise _refused(repo, status, first_line(error), constants.ENDPOINT) from error
    except errors.OfflineModeIsEnabled as error:
        raise RunError(f"{repo} cannot be uploaded: HF_HUB_OFFLINE is set", "unset it where a network is") from error
    except RuntimeError as error:
        if not isinstance(
            error.__cause__, OSError | ValueError | network
        ):  # its threads wrap what went wrong in uploading
            raise
        reason = f"{first_line(error)} {first_line(error.__cause__)}"
        raise RunError(f"{repo} cannot be uploaded to {constants.ENDPOINT}: {reason}", AGAIN) from error
    except (OSError, ValueError, network) as error:
        if isinstance(error, FileNotFoundError):
            raise
        if status := getattr(getattr(error, "response", None), "status_code", None):  # older versions, of a wrong token
            raise _refused(repo, status, first_line(error), constants.ENDPOINT) from error
        raise RunError(f"{repo} cannot be uploaded to {constants.ENDPOINT}: {first_line(error)}", AGAIN) from error


def _refused(repo: str, status: int | None, reason: str, endpoint: str) -> KavaError:
    if status == 401:
        return ConfigError(f"{endpoint} does not accept the token", LOGIN)
    if status == 403:
        return ConfigError(f"this token may not write to {repo} on {endpoint}", LOGIN)
    if status in (409, 412):
        return RunError(f"{repo} was changed while it was written to", "nothing was committed; run the command again")
    return RunError(f"{endpoint} refused {repo}: {reason}", AGAIN)


def listing(files: dict[str, int]) -> Sequence[tuple[str, str]]:
    """Name and size of each file, for a table."""
    return [(name, f"{size / 1e6:.2f} MB" if size >= 10**4 else f"{size} B") for name, size in files.items()]
