"""`kava bench latent`: cost (passes, calls, time, memory) and accuracy of a student's three ways to answer, on the same
engine and weights."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kava.config import Recipe
from kava.data.example import Example
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.score import cue_of, judge, summary
from kava.infer.checks import untrained
from kava.infer.sampling import Sampling
from kava.infer.student import Answer, Student
from kava.lab.bench.timing import MEMORY, NO_MEMORY, hardware, peak_memory, ratio, take_turns
from kava.progress import track

MODES = ("latent", "direct", "cot")
NUMBERS = ("accuracy", "correct", "no_answer", "truncated", "avg_forward_passes", "avg_executed_calls",
           "avg_generated_tokens")  # fmt: skip
Case = tuple[str, int]  # a mode and a batch size


def open_student(
    checkpoint: Path, dtype: str, device: str, base: str | None = None, trust_remote_code: bool = False
) -> Student:
    """The student; `dtype` auto keeps the type in which its weights were trained."""
    student = Student.from_pretrained(checkpoint, device, base, trust_remote_code)
    if dtype != "auto":
        student.model.to(getattr(torch, dtype))
    return student


def bench(
    student: Student, eval_set: EvalSet, sizes: Sequence[int], limit: int, warmup: int, repeats: int, progress: bool
) -> dict[str, Any]:
    """The result as plain data, at batch 1 and `sizes`; `differences` says in which modes answers depend on the batch
    size, and then nothing is timed."""
    recipe, device = student.recipe, student.model.device
    order = student.by_length([example.question for example in eval_set.examples])  # as `Student.answer` groups them
    examples = [eval_set.examples[i] for i in order]
    questions = [example.question for example in examples]
    runs = {
        (mode, size): partial(student.answer, questions, mode, size, limit, Sampling())
        for mode in MODES
        for size in dict.fromkeys((1, *sizes))
    }
    answers = {case: run() for case, run in track(runs.items(), "answers compared", unit="ways", show=progress)}
    lines = differences(answers, questions)
    result: dict[str, Any] = {
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "hardware": hardware(device),
        "dtype": str(student.model.causal_lm.dtype).removeprefix("torch."),
        "weight_bytes": sum(weight.numel() * weight.element_size() for weight in student.model.parameters()),
        "num_tokens": recipe.latent.num_tokens,
        "num_iterations": recipe.latent.num_iterations,
        "dataset": eval_set.name,
        "questions": len(questions),
        "set_size": eval_set.set_size,
        "data_sha256": eval_set.sha256,
        "max_new_tokens": limit,
        "warmup": warmup,
        "repeats": repeats,
        "differences": lines,
        "equal": not lines,
    }
    if lines:
        return result
    times = take_turns(runs, repeats, device, warmup, progress)
    result["memory"] = MEMORY.get(device.type, NO_MEMORY)
    result["modes"] = {mode: _quality(recipe, examples, answers[mode, 1], mode) for mode in MODES}
    result["measured"] = []
    for mode, size in runs:
        facts = times[mode, size].facts()
        result["measured"].append({
            "mode": mode,
            "batch_size": size,
            **facts,
            "seconds_per_question": facts["seconds"] / len(questions),
            "speed_up": ratio(times["cot", size].wall, times[mode, size].wall),
            "peak_bytes": _peak(student, questions, mode, size, limit),
        })  # fmt: skip
    return result


def differences(answers: Mapping[Case, list[Answer]], questions: Sequence[str]) -> list[str]:
    """A line for each mode and batch size whose answers differ from those of the mode at batch 1."""
    lines = []
    for (mode, size), batched in answers.items():
        wrong = [triple for triple in zip(questions, batched, answers[mode, 1], strict=True) if triple[1] != triple[2]]
        if wrong:
            question, answer, alone = wrong[0]
            lines.append(
                f"{mode}: {len(wrong)} answers differ between batch {size} and 1, first {question!a}: "
                f"{answer.text!a} instead of {alone.text!a}"
            )
    return lines


def _peak(student: Student, questions: list[str], mode: str, size: int, limit: int) -> int | None:
    """The largest peak of all batches, measured one by one: a record of a whole run's allocations would fill the memory."""
    parts = [questions[start : start + size] for start in range(0, len(questions), size)]
    runs = [partial(student.answer, part, mode, size, limit, Sampling()) for part in parts]
    peaks = [peak_memory(run, student.model.device) for run in runs]
    return max((peak for peak in peaks if peak is not None), default=None)


def _quality(recipe: Recipe, examples: Sequence[Example], answers: Sequence[Answer], mode: str) -> dict[str, Any]:
    cue, note = cue_of(recipe, mode), untrained(recipe, mode)
    numbers = summary([judge(e, answer, mode, cue) for e, answer in zip(examples, answers, strict=True)])
    return {"cue": cue, **{name: numbers[name] for name in NUMBERS}, **({"note": note} if note else {})}
