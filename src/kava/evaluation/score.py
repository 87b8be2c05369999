"""Accuracy of generated answers; every item counts, also those without an answer.

An item is correct when the number right after the cue "The answer is:", given or generated, equals the gold number: the
method's exact match (`answers.strict`). The flexible reading falls back to the last number of the text.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from kava import answers
from kava.config import Recipe
from kava.data.encode import CUE
from kava.data.example import Example
from kava.errors import DataError
from kava.evaluation.samples import combined, sampled_summary
from kava.progress import progress as progress_of

if TYPE_CHECKING:  # `kava rescore` runs without torch
    from kava.infer.sampling import Sampling
    from kava.infer.student import Answer, Student

METRIC = "strict: the number right behind the cue equals the gold number"


def cue_of(recipe: Recipe, mode: str) -> str:
    """given or generated; in mode cot the model always writes the cue."""
    return "generated" if mode == "cot" else recipe.evaluation.cue


def verdict(text: str, gold: str, cue: str) -> dict[str, Any]:
    """The answer in a raw text, and whether it is correct. A given cue stands before the text."""
    whole = f"{CUE} {text}" if cue == "given" else text
    marked, value = answers.strict(whole), answers.flexible(whole)
    return {
        "strict_value": marked,
        "value": value,
        "correct": answers.equal(marked, gold),
        "correct_flexible": answers.equal(value, gold),
    }


def judge(example: Example, answer: "Answer | None", mode: str, cue: str = "given") -> dict[str, Any]:
    """One line of predictions_<set>.jsonl; `text` is raw, for `kava rescore`. Without an answer the item was too long."""
    text = "" if answer is None else answer.text
    return {
        "id": example.id,
        "question": example.question,
        "gold": example.answer,
        "num_steps": len(example.steps),
        "mode": mode,
        "text": text,
        **verdict(text, example.answer, cue),
        "truncated": answer is not None and answer.truncated,
        "forward_passes": 0 if answer is None else answer.forward_passes,
        "executed_calls": 0 if answer is None else answer.executed,
        "generated_tokens": 0 if answer is None else answer.num_tokens,
        **({"too_long": True} if answer is None else {}),
    }


def judge_samples(example: Example, drawn: "Sequence[Answer]", mode: str, cue: str = "given") -> dict[str, Any]:
    """The line of an item with several answers: the voted one's, with all of them in `samples`."""
    rows = [judge(example, answer, mode, cue) | {"log_probability": answer.log_probability} for answer in drawn]
    return combined(rows)


def judge_again(row: dict[str, Any], cue: str) -> dict[str, Any]:
    """A saved line with the verdict of today's reader of answers."""
    if not row.get("samples"):
        return row | verdict(row["text"], row["gold"], cue)
    facts = {name: value for name, value in row.items() if name != "samples"}
    return combined([facts | sample | verdict(sample["text"], row["gold"], cue) for sample in row["samples"]])


def too_long(
    student: "Student", examples: Sequence[Example], mode: str, max_new_tokens: int | None = None
) -> dict[int, str]:
    """The items that do not fit into the model: place -> what is wrong. They count as not answered; not all may be such."""
    if not hasattr(student, "too_long"):  # an object of one's own that answers; only it knows what it can read
        return {}
    problems = student.too_long([example.question for example in examples], mode, max_new_tokens)
    if problems and len(problems) == len(examples):
        raise DataError(
            f"none of {len(examples)} items fits into the model: {examples[0].id}: {problems[0]}",
            "lower evaluation.max_new_tokens (--max_new_tokens), or take shorter questions",
        )
    return problems


def by_length(student: "Student", examples: Sequence[Example]) -> list[int]:
    """Places of the examples, longest first, so that batches of neighbours have little padding."""
    if hasattr(student, "by_length"):
        return student.by_length([example.question for example in examples])
    return sorted(range(len(examples)), key=lambda i: -len(examples[i].question))  # an object of one's own that answers


def predict(
    student: "Student",
    examples: Sequence[Example],
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
    sampling: "Sampling | None" = None,
    ablate: str | None = None,
    samples: int | None = None,
) -> list[dict[str, Any]] | None:
    """A judged prediction per example, in order; None if `stop` became true. Without `sampling` as the recipe says.

    With `samples` each is made from so many answers (see `samples.py`).
    With `ablate` the latents of the whole set are computed first, because the replacements are made from them.
    """
    size = batch_size or student.recipe.evaluation.batch_size
    cue = cue_of(student.recipe, mode)
    problems = too_long(student, examples, mode, max_new_tokens)
    order = [i for i in by_length(student, examples) if i not in problems]
    latents = None
    if ablate is not None:
        from kava.infer.ablate import ablated

        fitting = sorted(order)
        thought = student.think([examples[i].question for i in fitting], size, progress)
        latents = thought.new_zeros(len(examples), *thought.shape[1:])
        latents[fitting] = ablated(ablate, thought, [examples[i].id for i in fitting])
    predictions = {i: judge(examples[i], None, mode, cue) for i in problems}
    with progress_of("answers", len(order), "questions", progress) as meter:
        for start in range(0, len(order), size):
            if stop():
                return None
            chosen = order[start : start + size]
            questions = [examples[i].question for i in chosen]
            rows = None if latents is None else latents[chosen]
            how = (mode, size, max_new_tokens, sampling, rows)
            if samples is None:
                batch = student.answer(questions, *how)
                judged = [judge(examples[i], answer, mode, cue) for i, answer in zip(chosen, batch, strict=True)]
            else:
                drawn = student.answer(questions, *how, samples=samples)
                judged = [
                    judge_samples(examples[i], several, mode, cue) for i, several in zip(chosen, drawn, strict=True)
                ]
            predictions.update(zip(chosen, judged, strict=True))
            meter.advance(len(chosen))
    return [predictions[i] for i in range(len(examples))]


def summary(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and means: shares as fractions of all items, the spread over items as a sample standard deviation.

    Passes, calls and tokens are means over the items that fit into the model.
    """
    total = len(predictions)
    answered = [item for item in predictions if not item.get("too_long")]
    passes = [item["forward_passes"] for item in answered]
    correct = sum(item["correct"] for item in predictions)
    lengths = sorted({item["num_steps"] for item in predictions} - {0})  # 0 = the set has no steps
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "unit": "fraction",
        "metric": METRIC,
        **sampled_summary(predictions),
        "strict_accuracy": correct / total,
        "flexible_accuracy": sum(item["correct_flexible"] for item in predictions) / total,
        "no_answer": sum(item["value"] is None for item in predictions) / total,
        "truncated": sum(item["truncated"] for item in predictions) / total,
        **({"too_long": total - len(answered)} if len(answered) < total else {}),
        "avg_forward_passes": fmean(passes),
        "std_forward_passes": stdev(passes) if len(passes) > 1 else None,
        "avg_executed_calls": fmean(item["executed_calls"] for item in answered),
        "avg_generated_tokens": fmean(item["generated_tokens"] for item in answered),
        "by_steps": {n: _share([item for item in predictions if item["num_steps"] == n]) for n in lengths},
    }


def _share(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {"correct": sum(item["correct"] for item in items), "total": len(items)}


def score(
    student: "Student", examples: Sequence[Example], mode: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """The numbers of `summary` that training logs; None if `stop` became true."""
    predictions = predict(student, examples, mode, stop=stop, progress=True)
    if predictions is None:
        return None
    numbers = summary(predictions)
    return {name: numbers[name] for name in ("accuracy", "no_answer", "truncated", "avg_forward_passes")}
