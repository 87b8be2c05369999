"""kava.json, the card of a student's folder: what it is, and the sha256 of every file and of the card itself. No torch."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kava.config import Recipe
from kava.config.typed_file import Count, Record, checked, read_dict
from kava.errors import CheckpointError
from kava.files import write_json

CARD, RECIPE, WEIGHTS, CONFIG = "kava.json", "recipe.yaml", "trained.safetensors", "config.json"
SHARDS = "shards"  # the folder in place of WEIGHTS and the optimizer's state (`shards.py`)
EXPORT = "kava_export.json"  # the card of an exported folder (`kava.export.card`)
FORMAT = 1
TORN = "the folder is torn or was edited; use another, or train the student again"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
log = logging.getLogger("kava.student")
_warned: set[Path] = set()


class CardFormat(Record):
    format: int


class StudentCard(CardFormat):
    """`files`: hashes of the student's own; `training_state`: of what a checkpoint has beside it to go on training;
    `shards`: of the files in shards/, where both are in parts.

    These, and `sha256` of the card itself, are missing in folders of versions that did not hash them.
    """

    method: Literal["latent", "explicit"]
    trained: list[str]
    frozen_fingerprint: str
    kava_version: str | None = None
    step: Count | None = None
    effective_batch_size: Count | None = None
    data_sha256: str | None = None
    files: dict[str, str] | None = None
    training_state: dict[str, str] | None = None
    shards: dict[str, str] | None = None
    sha256: str | None = None


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Writes kava.json with the hash of every other file in the folder; the last file to be written."""
    _write(folder, {"format": FORMAT, **facts, "files": _hashes(folder, {CARD})})


def add_training_state(folder: Path) -> None:
    """Adds to kava.json the hash of every file that came into the folder after it."""
    card = read_card(folder)
    facts = card.model_dump(exclude={"sha256"}, exclude_unset=True)
    _write(folder, facts | {"training_state": _hashes(folder, {CARD, *(card.files or {})})})


def _hashes(folder: Path, but: Collection[str]) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return {path.name: file_hash(path) for path in files if path.name not in but}


def _write(folder: Path, facts: dict[str, Any]) -> None:
    card = json.loads(json.dumps(facts))  # as it will be read
    write_json(folder / CARD, card | {"sha256": _content_hash(card)})


def read_card(folder: str | Path) -> StudentCard:
    """kava.json of a student's folder."""
    path = Path(folder) / CARD
    if not path.is_file():
        exported = "; kava export made it for other programs" if (path.parent / EXPORT).is_file() else ""
        raise CheckpointError(
            f"{folder} is not a student's folder: it has no {CARD}{exported}", "give a run's best_checkpoint folder"
        )
    facts = read_dict(path, CardFormat, TORN, CheckpointError)
    if facts["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {facts['format']}, this version reads {FORMAT}", "update kava")
    card = checked(facts, StudentCard, str(path), TORN, CheckpointError)
    own_hash = facts.pop("sha256", None)
    if (card.files is None) != (own_hash is None) or (own_hash is not None and own_hash != _content_hash(facts)):
        raise CheckpointError(f"{path} is not the file that was saved: its sha256 differs", TORN)
    return card


def check_files(folder: str | Path, names: Sequence[str] | None = None) -> StudentCard:
    """The card of a folder all of whose files (or those called `names`) are as saved; the first other one is an error.

    Files that the card does not list do not matter, nor does a checkpoint's training state. A student without hashes is
    only warned about.
    """
    folder = Path(folder)
    card = read_card(folder)
    if card.files is None:
        if folder.resolve() not in _warned:
            _warned.add(folder.resolve())
            log.warning("%s has no hashes (an earlier kava wrote it): damage to its files cannot be noticed", folder)
        return card
    _check(folder, {name: value for name, value in card.files.items() if names is None or name in names})
    return card


def check_checkpoint(folder: str | Path) -> None:
    """Raises where a file of the student or of its training state is not the one that was saved."""
    card = check_files(folder)
    _check(Path(folder), card.training_state or {})
    check_shards(Path(folder), card)


def _check(folder: Path, hashes: Mapping[str, str]) -> None:
    for name, expected in hashes.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing", TORN)
        if file_hash(path) != expected:
            raise CheckpointError(f"{path} is not the file that was saved: its sha256 differs", TORN)


def missing_shard(folder: Path, card: StudentCard) -> str | None:
    """The first file in shards/ that the card lists and that is not there, with the number of processes that wrote them."""
    names = card.shards or {}
    missing = next((name for name in names if Path(name).name != name or not (folder / SHARDS / name).is_file()), None)
    processes = len({name.split("_")[2] for name in names if name.startswith("__")})
    return missing and f"{SHARDS}/{missing} is missing (a checkpoint of {processes} processes, a file of each)"


def check_shards(folder: Path, card: StudentCard) -> None:
    """Refuses a folder whose files in shards/ are not those that were saved."""
    if missing := missing_shard(folder, card):
        raise CheckpointError(f"{folder}: {missing}", TORN)
    _check(folder / SHARDS, card.shards or {})


def check_recipe(card: StudentCard, recipe: Recipe, folder: Path) -> None:
    """Refuses a card of another line than the recipe's."""
    method = method_of(recipe)
    if card.method != method:
        raise CheckpointError(f"{folder / CARD}: method is {card.method}, {RECIPE} says {method}", TORN)


def check_tokenizer(folder: Path) -> None:
    """Refuses a folder without its tokenizer's files (transformers would make up another tokenizer)."""
    for name in TOKENIZER:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing", TORN)


def method_of(recipe: Recipe) -> str:
    return "explicit" if recipe.explicit.enabled else "latent"


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _content_hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
