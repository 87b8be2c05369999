"""The state of training runs from the files in their folders, for `kava show` and `kava runs`. Needs no torch.

A file that cannot be read makes a run "broken" and says why; it never hides the other runs.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.config.typed_file import read_dicts
from kava.errors import DataError, KavaError, RunError
from kava.files import is_owned
from kava.lab.analysis.runs import NOT_RUNS, read_mapping, run_name

RECIPE, META, LOG, LOCK, CARD = "recipe.yaml", "meta.json", "log.jsonl", ".lock", "kava.json"
NOT_STARTED, RUNNING, INTERRUPTED, FINISHED, BROKEN = "not started", "running", "interrupted", "finished", "broken"
METRICS = {"accuracy": max, "ce": min}  # the number that chooses the best checkpoint, and how
TAIL = 1 << 16  # bytes at the end of a log that hold its last lines


@dataclass(frozen=True)
class RunState:
    """One run. `best` is the best validation value of `metric`; None and "" where a number or name is not known; a loss may
    be NaN."""

    folder: Path
    state: str
    recipe: str = ""
    seed: int | None = None
    line: str = ""  # latent or explicit
    model: str = ""
    data: str = ""
    step: int | None = None
    steps: int | None = None  # planned
    loss: float | None = None
    metric: str = ""
    best: float | None = None
    when: float | None = None  # of the last change, seconds since 1970
    problem: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = "state recipe seed line model data step steps loss metric best when problem".split()  # noqa: SIM905
        facts = {"folder": str(self.folder), **{name: getattr(self, name) for name in names}}
        return facts | {"loss": _number(self.loss)}


def find_run_folders(root: Path) -> list[Path]:
    """Every run's folder at or below `root`, by name."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RunError(f"{root} {what}", "name the folder of your runs, such as outputs")
    return list(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for place, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(NOT_RUNS))
        if CARD in files:  # a student alone
            below.clear()
        elif {RECIPE, META, LOG} & set(files):
            yield Path(place)


def read_state(folder: Path) -> RunState:
    """The state of the run in this folder; broken, with the reason, where a file cannot be read."""
    times = [(folder / name).stat().st_mtime for name in (LOG, META, RECIPE) if (folder / name).is_file()]
    when = max(times, default=None)
    try:
        return _read(folder, when)
    except KavaError as error:
        member, seed = run_name(folder)
        return RunState(folder, BROKEN, member, seed, when=when, problem=_inside(error.message, folder))


def _read(folder: Path, when: float | None) -> RunState:
    meta = read_mapping(folder / META) if (folder / META).is_file() else {}
    facts = _facts(folder, meta)
    finished = meta.get("finished") is True
    log = glance(folder / LOG, TAIL if finished else None)
    numbers = (_number(line.get("step")) for line in reversed(log))
    step = next((number for number in numbers if number is not None), _number(meta.get("steps")))
    losses = (line["loss"] for line in reversed(log) if isinstance(line.get("loss"), float | int))
    steps = _number(meta.get("total_steps") or (meta.get("steps") if finished else None))
    metric, best = _best(facts["line"], meta, log)
    state = RUNNING if not finished and is_owned(folder / LOCK) else _state(finished, bool(log), meta)
    return RunState(
        folder,
        state,
        **facts,
        step=None if step is None else int(step),
        steps=None if steps is None else int(steps),
        loss=next(losses, None),
        metric=metric,
        best=best,
        when=when,
        meta=meta,
    )


def _state(finished: bool, began: bool, meta: Mapping[str, Any]) -> str:
    if finished:
        return FINISHED
    return INTERRUPTED if began or "finished" in meta else NOT_STARTED


def _facts(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, seed, line, model and data: from meta.json, which is read faster, or from the recipe of an older run."""
    if isinstance(meta.get("run"), dict):
        return _checked_facts(meta["run"])
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder / RECIPE} is missing", "the folder holds no whole run")
    recipe = read_mapping(folder / RECIPE)

    def value(section: str, key: str) -> Any:
        inner = recipe.get(section)
        return inner.get(key) if isinstance(inner, dict) else None

    line = "explicit" if value("explicit", "enabled") else "latent"
    names = {"recipe": ("about", "name"), "seed": ("system", "seed"), "model": ("model", "name")}
    read = {name: value(*place) for name, place in names.items()}
    return _checked_facts({**read, "line": line, "data": value("dataset", "name")})


def _checked_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Names as text and the seed as a number; "" and None for anything else."""
    texts = {name: facts.get(name) for name in ("recipe", "line", "model", "data")}
    seed = _number(facts.get("seed"))
    texts = {name: text if isinstance(text, str) else "" for name, text in texts.items()}
    return {**texts, "seed": None if seed is None else int(seed)}


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; [] before the first."""
    path = folder / LOG
    return _checked(read_dicts(path, dict[str, Any], "the file is torn"), path) if path.is_file() else []


def glance(path: Path, tail: int | None = None) -> list[dict[str, Any]]:
    """The lines of a log that say how far the run is: its validations, and all from the last loss on.

    `tail`: of so many bytes at the end only. The other lines are not parsed, which takes most of the time.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - (size if tail is None else tail))
        file.seek(start)
        lines = file.read().split(b"\n")[
            1 if start else 0 : -1
        ]  # what follows the last line end is still being written
    last = max((number for number, line in enumerate(lines) if b'"loss"' in line), default=0)
    entries = []
    for number, line in enumerate(lines):
        if number >= last or b'"eval_' in line:
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                where = f"{path}, line {number + 1}" if not start else str(path)
                raise DataError(f"{where}: not JSON ({error})", "the file is torn") from error
    return _checked(entries, path)


def _checked(lines: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    if not all(isinstance(line, dict) for line in lines):
        raise DataError(f"{path}: a line is no JSON object", "the file is torn")
    return list(lines)


def _best(line: str, meta: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> tuple[str, float | None]:
    metric = "ce" if line == "explicit" else "accuracy"
    if f"best_{metric}" in meta:
        return metric, _number(meta[f"best_{metric}"])
    values = [_number(entry.get(f"eval_{metric}")) for entry in log]
    return metric, METRICS[metric]((value for value in values if value is not None), default=None)


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _inside(message: str, folder: Path) -> str:
    """A message without the folder's path, which the row already has."""
    return message.replace(f"{folder}{os.sep}", "")
