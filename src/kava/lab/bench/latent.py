"""`kava bench latent`: cost (passes, calls, time, memory) and accuracy of a student's three ways to answer, on the same
engine and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kava.data.example import Example
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.score import cue_of, judge, summary
from kava.infer.generate import Sampling
from kava.infer.modes import untrained
from kava.infer.student import Answer, Student
from kava.lab.bench.timing import MEMORY, NO_MEMORY, Times, hardware, peak_memory, ratio, take_turns

MODES = ("latent", "direct", "cot")
NUMBERS = ("accuracy", "correct", "no_answer", "truncated", "avg_forward_passes", "avg_executed_calls",
           "avg_generated_tokens")  # fmt: skip
Case = tuple[str, int]  # a mode and a batch size


def open_student(checkpoint: Path, dtype: str, device: str, base: str | None = None) -> Student:
    """The student; `dtype` auto keeps the type in which its weights were trained."""
    student = Student.from_pretrained(checkpoint, device, base)
    if dtype != "auto":
        student.model.to(getattr(torch, dtype))
    return student


def bench(
    student: Student,
    eval_set: EvalSet,
    batch_sizes: Sequence[int] = (16,),
    max_new_tokens: int | None = None,
    warmup: int = 1,
    repeats: int = 3,
    progress: bool = False,
) -> dict[str, Any]:
    """The result as plain data, at batch 1 and `batch_sizes`; `differences` says in which modes answers depend on the batch
    size, and then nothing is timed."""
    recipe, device = student.recipe, student.model.device
    limit = max_new_tokens or recipe.evaluation.max_new_tokens
    examples = sorted(eval_set.examples, key=lambda example: len(example.question))  # as `Student.answer` groups them
    questions = [example.question for example in examples]
    sizes = tuple(dict.fromkeys((1, *batch_sizes)))
    runs = {(mode, size): _run(student, questions, mode, size, limit) for mode in MODES for size in sizes}
    answers = {case: run() for case, run in runs.items()}
    result: dict[str, Any] = {
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "hardware": hardware(device),
        "dtype": str(next(student.model.backbone.parameters()).dtype).removeprefix("torch."),
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
        "differences": differences(answers, questions),
    }
    result["equal"] = not result["differences"]
    if result["equal"]:
        times = take_turns(runs, repeats, device, warmup, progress)
        memory = {case: _peak(student, questions, case, limit, device) for case in runs}
        result["memory"] = MEMORY.get(device.type, NO_MEMORY)
        result["modes"] = {mode: _quality(student, examples, answers[mode, 1], mode) for mode in MODES}
        result["measured"] = [_row(case, times, memory[case], len(questions)) for case in runs]
    return result


def _run(student: Student, questions: list[str], mode: str, size: int, limit: int) -> Callable[[], list[Answer]]:
    return lambda: student.answer(questions, mode, size, limit, Sampling())


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


def _peak(student: Student, questions: list[str], case: Case, limit: int, device: torch.device) -> int | None:
    """The largest peak of all batches, measured one by one: a record of a whole run's allocations would fill the memory."""
    mode, size = case
    parts = [questions[start : start + size] for start in range(0, len(questions), size)]
    peaks = [peak_memory(_run(student, part, mode, size, limit), device) for part in parts]
    return None if peaks[0] is None else max(peak for peak in peaks if peak is not None)


def _quality(student: Student, examples: Sequence[Example], answers: Sequence[Answer], mode: str) -> dict[str, Any]:
    cue, note = cue_of(student.recipe, mode), untrained(student.recipe, mode)
    numbers = summary([judge(e, answer, mode, cue) for e, answer in zip(examples, answers, strict=True)])
    return {"cue": cue, **{name: numbers[name] for name in NUMBERS}, **({"note": note} if note else {})}


def _row(case: Case, times: Mapping[Case, Times], memory: int | None, questions: int) -> dict[str, Any]:
    mode, size = case
    facts = times[case].facts()
    return {
        "mode": mode,
        "batch_size": size,
        **facts,
        "seconds_per_question": facts["seconds"] / questions,
        "speed_up": ratio(times["cot", size].wall, times[case].wall),
        "peak_bytes": memory,
    }
