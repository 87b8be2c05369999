"""Finds and opens datasets: a file, a folder, `save_to_disk`, the hub's cache, the hub.

`open_set(name)` returns the rows of each split. A dataset that is not found is an error that lists every place searched;
it is never replaced by another one. `datasets` and `huggingface_hub` are imported only when needed.
"""

import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.data.generator import BUILT_IN
from kava.data.hub import Repo, snapshot
from kava.data.rows import JsonRows, Rows, TableRows
from kava.data.sources import OWN, SOURCES, Source, known_source
from kava.data.text_rows import TextRows
from kava.errors import DataError, first_line
from kava.files import looks_like_path
from kava.progress import progress
from kava.registry import nearest

LINE_BREAKS = {10: "\\n", 13: "\\r"}  # in a message
log = logging.getLogger(__name__)
GIVE = "give a known name, a hub name, a file or a folder"

DATASETS = Path("datasets")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIX = ".txt"
FILE_SUFFIXES = (*JSON_SUFFIXES, TEXT_SUFFIX)  # of one file that is a data set
ROW_FILES = (*JSON_SUFFIXES, ".parquet", ".arrow", ".csv")
SPLIT_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """An opened dataset: its source, place and splits; `whole` if it has no splits."""

    source: Source
    place: str
    splits: Mapping[str, Rows]
    whole: Rows | None = None


def open_set(name: str, config: str | None = None, streaming: bool = False) -> Opened:
    """Opens the first of: the path `name`; ./datasets/<name>; the hub's cache; the hub."""
    path = Path(os.path.expanduser(name))  # of Path it raises where there is no such user
    source = known_source(name) or (known_source(path.name) if is_place(path, name) else None) or OWN
    searched: list[str] = []
    for place in local_places(name, source):
        if is_place(place, name):
            if place != path:
                log.info("data set %s: read from %s", name, place)
            return _open_local(place, source, config, streaming)
        searched.append(str(place).translate(LINE_BREAKS))
    hub_id = hub_id_of(name, source)
    if hub_id is not None:
        cached = snapshot(Repo(hub_id, "dataset"))
        if cached is not None and any(file.suffix in ROW_FILES for file in cached.rglob("*")):  # not only a description
            log.info("data set %s: read from the hub's cache, %s", name, cached)
            return _open_local(cached, source, config, streaming, label=hub_id)
        searched.append(f"the hub's cache ({hub_id})")
        return _open_hub(hub_id, source, config, streaming, searched)
    if _looks_like_path(name):
        raise DataError(f"data set {name}: there is no such file or folder", f"looked for {path.absolute()}")
    known = [*BUILT_IN, *(n for s in SOURCES for n in s.names)]
    raise DataError(
        f"data set {name!r} was not found; looked at: {', '.join(searched)}",
        f"give a path to a .jsonl file or a folder, or a hub id with its owner; {nearest(name, known)}",
    )


def file_rows(path: Path) -> Rows:
    """The rows of one file of FILE_SUFFIXES."""
    return TextRows(path) if path.suffix == TEXT_SUFFIX else JsonRows(path)


def local_places(name: str, source: Source) -> list[Path]:
    """The path `name`; then, unless it is written as a path, ./datasets/ under every name of the dataset."""
    path = Path(os.path.expanduser(name))
    if _looks_like_path(name):
        return [path]
    names = dict.fromkeys([name, name.rpartition("/")[2], *(source.names if known_source(name) else ())])
    places = [path]
    for alias in names:
        places += [DATASETS / alias, DATASETS / f"{alias}.jsonl"]
    return places


def is_place(path: Path, name: str) -> bool:
    """Whether `path`, where the data set `name` may be, exists; what can be no name is an error."""
    if not name.strip():
        raise DataError("the name of the data set is empty", GIVE)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # too long, a NUL, no permission
        why = (getattr(error, "strerror", None) or str(error)).lower()
        short = repr(name) if len(name) <= 80 else f"{name[:60]!r}... ({len(name)} characters)"
        raise DataError(f"data set {short}: {why}", GIVE) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(
            f"data set {name}: neither a file nor a folder", "rows are read more than once; save them first"
        )
    return True


def hub_id_of(name: str, source: Source) -> str | None:
    """A dataset's name on the hub; None for a path and for an unknown name without an owner."""
    if known_source(name) is not None:
        return source.hub_id
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not _looks_like_path(name) else None


def data_repo(name: str, config: str | None) -> tuple[Repo, str | None] | None:
    """The hub repository and configuration of a dataset; None if it is built in, a path or in ./datasets."""
    source = known_source(name) or OWN
    hub_id = hub_id_of(name, source)
    if name in BUILT_IN or hub_id is None or any(is_place(path, name) for path in local_places(name, source)):
        return None
    return Repo(hub_id, "dataset"), config or source.config


def _looks_like_path(name: str) -> bool:
    return looks_like_path(name) or Path(name).suffix in FILE_SUFFIXES


def _open_local(place: Path, source: Source, config: str | None, streaming: bool, label: str | None = None) -> Opened:
    if place.is_file():
        if place.suffix not in FILE_SUFFIXES:
            raise DataError(f"{place}: files of the kind {place.suffix!r} are not read", "use .jsonl, or a folder")
        return Opened(source, str(place), {}, file_rows(place))
    label = label or str(place)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _opened(_load(label, "load_from_disk", str(place)), source, str(place), label)
    inner = place / (config or source.config or "main")
    folders = [inner, place] if inner.is_dir() else [place]
    for folder in folders:
        splits = _split_files(folder, JSON_SUFFIXES) or _split_files(folder, (TEXT_SUFFIX,))
        if splits:
            return Opened(source, str(folder), splits)
        single = [f for f in sorted(folder.iterdir()) if f.suffix in JSON_SUFFIXES and "dataset_info" not in f.name]
        if len(single) == 1 and not any(folder.glob("*.parquet")):
            return Opened(source, str(single[0]), {}, JsonRows(single[0]))
    # A sub-folder named after the configuration is opened directly; its parent would mix all configurations.
    names = (config,) if config is not None and folders[0] == place else ()
    table = _load(label, "load_dataset", str(folders[0]), *names, streaming=streaming)
    return _opened(table, source, str(folders[0]), label)


def _split_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Rows]:
    """train.jsonl, validation.jsonl (valid, val, dev), test.jsonl; something_train.jsonl is a train file, too."""
    splits: dict[str, Rows] = {}
    for file in sorted(folder.iterdir()):
        word = re.split(r"[_\-.]", file.stem)[-1].lower()
        if file.is_file() and file.suffix in suffixes and word in SPLIT_WORDS:
            split = SPLIT_WORDS[word]
            if split in splits:
                raise DataError(f"{folder} has two {split} files, one of them {file.name}", "keep one of them there")
            splits[split] = file_rows(file)
    return splits


def _open_hub(hub_id: str, source: Source, config: str | None, streaming: bool, searched: list[str]) -> Opened:
    log.info("data set %s: asking the Hugging Face hub", hub_id)
    try:
        table = _load(hub_id, "load_dataset", hub_id, config or source.config, streaming=streaming)
    except DataError as error:
        if error.hint is not None:  # no `datasets` package
            raise
        raise DataError(
            f"{error.message}; looked at: {', '.join(searched)} and the Hugging Face hub",
            f"with a network: check the name; without: put the set under {DATASETS / hub_id} (train.jsonl, ...)",
        ) from error
    return _opened(table, source, hub_id, hub_id)


def _load(label: str, function: str, *args: Any, **options: Any) -> Any:
    """Calls a function of the `datasets` package; its failures become one-line errors."""
    try:
        with progress("loading the package datasets"):
            import datasets
    except ImportError as error:
        raise DataError(
            f"data set {label}: the package `datasets` is needed to read it", "pip install 'datasets>=4'"
        ) from error
    try:
        with progress(f"loading data set {label}"):
            return getattr(datasets, function)(*args, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data set {label} cannot be loaded ({first_line(error)})") from error


def _opened(table: Any, source: Source, place: str, label: str) -> Opened:
    """A Dataset or a dictionary of them, with the splits under standard names."""
    if not isinstance(table, Mapping):
        return Opened(source, place, {}, TableRows(table, label))
    splits: dict[str, Rows] = {}
    for name, rows in table.items():
        splits[SPLIT_WORDS.get(str(name), str(name))] = TableRows(rows, f"{label} {name}")
    if source.whole_is_test and len(splits) == 1:  # the hub calls the only part of an evaluation set "train"
        return Opened(source, place, {}, next(iter(splits.values())))
    return Opened(source, place, splits)
