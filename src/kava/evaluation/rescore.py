"""Saved answers judged again with the current reader of answers; needs no model.

Only the raw text is read again; other measurements stay. Whether the cue was given is in the results file, so
predictions without one cannot be judged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kava.config.typed_file import Count, Finite, Record, checked, read_dict
from kava.data.rows import JsonRows
from kava.errors import DataError
from kava.evaluation.result_files import RESULTS, Files
from kava.evaluation.score import judge_again, summary
from kava.run_files import Positive, ResultFields

AGAIN = "the file is torn; evaluate again"


class ScoredResults(ResultFields):
    """The fields of a results file that scoring again needs."""

    total: Positive
    accuracy: Finite
    cue: Literal["given", "generated"]


class RawSample(Record):
    """The fields of one of several answers that scoring again needs."""

    text: str
    forward_passes: Count
    executed_calls: Count
    generated_tokens: Count
    truncated: bool
    log_probability: Finite


class RawPrediction(Record):
    """The fields of a line of predictions that scoring again needs."""

    samples: list[RawSample] | None = None
    gold: str
    text: str
    num_steps: Count
    forward_passes: Count
    executed_calls: Count
    generated_tokens: Count
    truncated: bool


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
    results = read_dict(place, ScoredResults, AGAIN)
    old = [dict(row) for where, row in JsonRows(path) if checked(row, RawPrediction, where, "evaluate again")]
    if len(old) != results["total"]:
        raise DataError(f"{path} has {len(old)} lines, {place.name} counts {results['total']} items", "evaluate again")
    new = [judge_again(row, results["cue"]) for row in old]
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
