"""Exports a training set as JSON lines (prompt, target) for programs and nodes without access to the hub."""

import json
from pathlib import Path
from typing import Any

from kava.data.fields import ANSWER
from kava.data.places import open_set
from kava.data.sources import known_source
from kava.errors import DataError
from kava.files import write_text
from kava.progress import track

PUBLISHED = {"gsm8k": 7473, "gsm8k-aug": 385620, "gsm8k-aug-nl": 385620}  # rows of train


def export_name(name: str, config: str | None) -> str:
    """gsm8k_train.jsonl, with a configuration gsm8k_main_train.jsonl."""
    return "_".join([Path(name).name.removesuffix(".jsonl"), *([config] if config else []), "train.jsonl"])


def export_train(name: str, config: str | None, path: Path, progress: bool = True) -> int:
    """Writes every training row of a set to `path` and returns their number; an unreadable row is an error.

    target is the worked solution that ends in "#### answer", as in GSM8K. A row with a list of steps keeps it, so that
    the file gives the same questions, steps and answers.
    """
    opened = open_set(name, config)
    rows = opened.splits.get("train", None if opened.source.whole_is_test else opened.whole)
    if rows is None:
        has = ", ".join(opened.splits) or "a test set"
        raise DataError(f"data set {name} ({opened.place}) has no train split; it has {has}", "choose another set")
    cot_type = opened.source.cot_type or "natural_language"
    lines = []
    for where, row in track(rows, f"writing {name}", show=progress):
        question, steps, answer = opened.source.parse(row, where, cot_type)
        record: dict[str, Any] = {"prompt": question, "target": answer}
        if row.get("steps") is not None:
            record |= {"target": "\n".join([*steps, f"#### {answer}"]), "steps": steps}
        else:
            record["target"] = next((row[n].strip() for n in ANSWER if "####" in str(row.get(n))), answer)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"data set {name} ({opened.place}): the train split is empty", "look at its file")
    write_text(path, "".join(lines))
    return len(lines)


def published(name: str) -> int | None:
    """The published number of training rows of a known source."""
    source = known_source(name) or known_source(Path(name).name)
    return None if source is None else PUBLISHED.get(source.name)
