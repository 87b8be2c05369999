"""The functions of kava_rows.yaml: a row's question and gold answer, and the verdict on a text, as `kava evaluate` has them."""

from typing import Any

from kava.data.example import Example
from kava.data.load import load_rows
from kava.evaluation.score import verdict


def example(row: dict[str, Any]) -> Example:
    """A row as kava reads it."""
    return load_rows([row], "the task's rows")[0]


def question(row: dict[str, Any]) -> str:
    """What the student is asked."""
    return example(row).question


def gold(row: dict[str, Any]) -> str:
    """The right number."""
    return example(row).answer


def process_results(row: dict[str, Any], texts: list[str]) -> dict[str, float]:
    """1.0 where the number right after the cue is the gold one; `flexible` falls back to the last number."""
    made = verdict(texts[0], gold(row), "generated")  # the text has the cue, also where it was given
    return {"exact_match": float(made["correct"]), "flexible": float(made["correct_flexible"])}
