"""Saved answers judged again with the current reader of answers; needs no model.

Only the raw text is read again; other measurements stay. Whether the cue was given is in the results file, so
predictions without one cannot be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config.text import parse_text
from kava.data.rows import JsonRows
from kava.errors import ConfigError, DataError
from kava.evaluation.result_files import RESULTS, Files
from kava.evaluation.score import summary, verdict

FIELDS: dict[str, type] = {
    "gold": str, "text": str, "num_steps": int, "forward_passes": int, "executed_calls": int, "generated_tokens": int,
    "truncated": bool,
}  # fmt: skip


@dataclass(frozen=True)
class Rescored:
    """New content for both files; `before` is the old accuracy, `changed` counts items with another verdict."""

    files: Files
    results: dict[str, Any]
    predictions: list[dict[str, Any]]
    before: float
    changed: int


def rescore(path: Path) -> Rescored:
    """Judges predictions_<set>.jsonl again, with the results file beside it; writes nothing."""
    if not path.is_file() or path.suffix != ".jsonl":
        what = "is no predictions_<set>.jsonl" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}", "give the predictions_*.jsonl of an evaluation")
    place = _results_beside(path)
    results = _read(place)
    old = [_checked(row, FIELDS, where) for where, row in JsonRows(path)]
    if len(old) != results["total"]:
        raise DataError(f"{path} has {len(old)} lines, {place.name} counts {results['total']} items", "evaluate again")
    new = [row | verdict(row["text"], row["gold"], results["cue"]) for row in old]
    changed = sum(a.get("correct") != b["correct"] for a, b in zip(old, new, strict=True))
    return Rescored(Files(place, path), results | summary(new) | {"rescored": True}, new, results["accuracy"], changed)


def _results_beside(predictions: Path) -> Path:
    name = predictions.stem.removeprefix("predictions_")
    paths = [predictions.with_name(stem + suffix) for stem in (f"results_{name}", name) for suffix in RESULTS]
    files = [path for path in paths if path.is_file()]
    if not files:
        message = f"{predictions} has no results_{name}.yaml beside it, which says whether the cue was given"
        raise DataError(message, "keep the two files together, or evaluate again")
    if len(files) > 1:
        message = f"{predictions} may belong to {files[0].name} or to {files[1].name}"
        raise DataError(message, "keep the newer of the two there")
    return files[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = parse_text(path.read_text(encoding="utf-8"), str(path), as_json=path.suffix == ".json")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", "evaluate again") from error
    except ConfigError as error:
        raise DataError(error.message, "the file is torn; evaluate again") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path} holds no keys and values", "evaluate again")
    _checked(fields, {"total": int, "accuracy": float, "cue": str}, str(path))
    if fields["cue"] not in ("given", "generated"):
        raise DataError(f"{path}: field 'cue' is {fields['cue']!r}", "it must be given or generated")
    return fields


def _checked(row: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """The row, once each field of `kinds` is present and of its type."""
    for name, kind in kinds.items():
        value = row.get(name)
        if value is None:
            raise DataError(f"{where}: field {name!r} is missing", "evaluate again")
        if not isinstance(value, (int, float) if kind is float else kind) or (kind is int and isinstance(value, bool)):
            message = f"{where}: field {name!r} is a {type(value).__name__}, not {kind.__name__}"
            raise DataError(message, "evaluate again")
    return dict(row)
