"""kava_export.json, the card of an exported folder: what it is, of which student, and the sha256 of every file. No torch."""

import json
from pathlib import Path
from typing import Any

from kava.backbone.card import EXPORT, file_hash
from kava.errors import CheckpointError
from kava.files import write_json

FORMAT = 1
CHANGED = "the folder is torn or was changed; export the student again"


def write_export_card(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the card with the hash and size of every other file; the last file to be written. Returns what it holds."""
    files = {name: {"sha256": file_hash(path), "bytes": path.stat().st_size} for name, path in _files(folder).items()}
    card = {"format": FORMAT, **facts, "files": files}
    write_json(folder / EXPORT, card)
    return card


def read_export_card(folder: Path) -> dict[str, Any]:
    """The card of an exported folder."""
    path = folder / EXPORT
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", CHANGED) from error
    if not isinstance(card, dict) or not isinstance(card.get("files"), dict):
        raise CheckpointError(f"{path} is not the card of an exported student", CHANGED)
    return card


def check_export(folder: Path) -> dict[str, Any]:
    """The card of a folder all of whose files are as exported; the first other one is an error."""
    card = read_export_card(folder)
    for name, entry in card["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing", CHANGED)
        if file_hash(folder / name) != entry.get("sha256"):
            raise CheckpointError(f"{folder / name} is not the file that was exported: its sha256 differs", CHANGED)
    return card


def is_unchanged_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else, by names and sizes; only such a folder may be replaced."""
    if not (folder / EXPORT).is_file():
        return False
    listed = read_export_card(folder)["files"]
    present = {name: path.stat().st_size for name, path in _files(folder).items()}
    return present == {name: entry.get("bytes") for name, entry in listed.items()}


def _files(folder: Path) -> dict[str, Path]:
    """Every file below the folder but the card, by its relative name."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if name != EXPORT}
