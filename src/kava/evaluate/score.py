"""Accuracy of generated answers; every item counts, whatever happened to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from kava import answers
from kava.data.example import Example
from kava.infer.student import Answer, Student


def judge(example: Example, answer: Answer, mode: str) -> dict[str, Any]:
    """One line of predictions_<set>.jsonl."""
    return {
        "id": example.id,
        "question": example.question,
        "gold": example.answer,
        "num_steps": len(example.steps),
        "mode": mode,
        "text": answer.text,
        "value": answer.value,
        "correct": answers.equal(answer.value, example.answer),
        "truncated": answer.truncated,
        "forward_passes": answer.forward_passes,
        "executed_calls": answer.executed,
        "generated_tokens": answer.num_tokens,
    }


def predict(
    student: Student,
    examples: Sequence[Example],
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> list[dict[str, Any]] | None:
    """A judged prediction per example, in order; None when `stop` said so in between."""
    from kava.data.progress import progress_bar

    size = batch_size or student.recipe.evaluation.batch_size
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].question))
    found: dict[int, dict[str, Any]] = {}
    for start in progress_bar(range(0, len(order), size), "answer", progress):
        if stop():
            return None
        chosen = order[start : start + size]
        given = student.answer([examples[i].question for i in chosen], mode, size, max_new_tokens)
        found.update((i, judge(examples[i], answer, mode)) for i, answer in zip(chosen, given, strict=True))
    return [found[i] for i in range(len(examples))]


def summary(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and means over all items: accuracy is a fraction, the spread over items a sample standard deviation."""
    total = len(predictions)
    passes = [item["forward_passes"] for item in predictions]
    correct = sum(item["correct"] for item in predictions)
    lengths = sorted({item["num_steps"] for item in predictions})
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "no_answer": sum(item["value"] is None for item in predictions) / total,
        "truncated": sum(item["truncated"] for item in predictions) / total,
        "avg_forward_passes": fmean(passes),
        "std_forward_passes": stdev(passes) if total > 1 else None,
        "avg_executed_calls": fmean(item["executed_calls"] for item in predictions),
        "by_steps": {n: _share([item for item in predictions if item["num_steps"] == n]) for n in lengths},
    }


def _share(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {"correct": sum(item["correct"] for item in items), "total": len(items)}


def score(
    student: Student, examples: Sequence[Example], mode: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """The flat numbers of `summary`, as training logs them."""
    predictions = predict(student, examples, mode, stop=stop)
    if predictions is None:
        return None
    numbers = summary(predictions)
    return {name: numbers[name] for name in ("accuracy", "no_answer", "truncated", "avg_forward_passes")}
