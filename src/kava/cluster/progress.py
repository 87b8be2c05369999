"""How far a task's training is: its last update, of how many, and the time that is left, from the run's own files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

from kava.cluster.submit import FOLDER
from kava.config.text import parse_text
from kava.config.typed_file import checked, read_dict
from kava.errors import ConfigError, DataError
from kava.run_files import AGAIN, LogLine, StoredRecipe, read_meta

TAIL = 65536  # bytes at the end of a log that hold its last line
_STEP = re.compile(r"checkpoint-step(\d+)")


class Progress(NamedTuple):
    """`seconds` since the task began, or as long as it took; `updates` of `total` are done; `left` are seconds."""

    seconds: float | None = None
    updates: int | None = None
    total: int | None = None
    left: float | None = None


def progress(status: Mapping[str, Any], record: Mapping[str, Any]) -> Progress:
    """The progress of a task by its status file; `record` is its submission's jobs.json with its `folder`."""
    if not status.get("began"):
        return Progress()
    began, ended = _time(status["began"]), status.get("ended")
    seconds = (_time(ended) if ended else datetime.now(timezone.utc).timestamp()) - began
    runs = [run for run in _runs(status.get("command") or [], record) if (run / "log.jsonl").is_file()]
    if not runs:
        return Progress(seconds)
    run = max(runs, key=lambda folder: (folder / "log.jsonl").stat().st_mtime)  # of several, the one at work
    last = _last_line(run / "log.jsonl")
    if last is None:
        return Progress(seconds)
    total = _total(run, last)
    left = None if ended or total is None else _left(run, int(last["step"]), total, began)
    return Progress(seconds, int(last["step"]), total, left)


def _runs(commands: Sequence[Sequence[str]], record: Mapping[str, Any]) -> Iterator[Path]:
    """The folders of the trainings among a task's commands, also where the outputs were moved or are mounted elsewhere."""
    for words in commands:
        if "train" not in words and "distill" not in words:
            continue
        for flag, value in pairwise(words):
            if flag == "--output_dir":
                yield _here(PurePath(value), record)


def _here(folder: PurePath, record: Mapping[str, Any]) -> Path:
    """Where a run's folder is now: jobs.json lies in <outputs>/.jobs/<name>, and runs in or below <outputs>."""
    outputs = Path(record["folder"]).parent.parent
    script = PurePath(record["jobs"][0]["script"])
    as_submitted = next((place.parent for place in script.parents if place.name == FOLDER), None)
    if as_submitted is not None and folder.is_relative_to(as_submitted):
        return outputs / folder.relative_to(as_submitted)
    return Path(record.get("working_folder", "."), folder)


def _last_line(log: Path) -> dict[str, Any] | None:
    """The last whole line of log.jsonl."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    whole = [line for line in lines if line.startswith("{") and line.endswith("}\n")]
    if not whole:
        return None
    try:
        line = parse_text(whole[-1], str(log), as_json=True)
    except ConfigError as error:
        raise DataError(f"{log}, its last line: not readable as JSON", AGAIN) from error
    checked(line, LogLine, f"{log}, its last line", AGAIN)
    return cast(dict[str, Any], line)


def _total(run: Path, last: Mapping[str, Any]) -> int | None:
    """All updates of a run: the recipe's max_steps, else its epochs times the updates of one."""
    path = run / "recipe.yaml"
    training = read_dict(path, StoredRecipe, AGAIN).get("training") if path.is_file() else None
    if not training:
        return None
    if training.get("max_steps"):
        return int(training["max_steps"])
    epochs, epoch = training.get("epochs"), last.get("epoch")
    updates = last["step"] / epoch if epochs and epoch else inf  # of one epoch
    return round(updates) * int(epochs) if isfinite(updates) else None


def _left(run: Path, step: int, total: int, began: float) -> float | None:
    """Seconds for the updates that are left, at the pace since this process began; None where it is not known."""
    started = read_meta(run).get("started")
    first = max(began, _time(started) if started else 0.0)
    saved = [(int(match[1]), path.stat().st_mtime) for path in run.iterdir() if (match := _STEP.fullmatch(path.name))]
    from_step = max((number for number, time in saved if time < first), default=0)  # it went on from there
    seconds = (run / "log.jsonl").stat().st_mtime - first
    return seconds / (step - from_step) * (total - step) if step > from_step and seconds > 0 else None


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
