"""The numbers of a run's last validation: cross-entropy and, with several teachers, the distances to them."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

TO_TEACHER, WEIGHT_OF = "kv_", "weight_"  # before a teacher's name
# Held-out numbers by their name in a validation's log line, without "eval_".
NUMBERS = {
    "ce": "CE",
    "kv": "KV",
    "kv_start": "KV, start",
    "kv_mean_predictor": "KV, mean",
    "kv_unexplained": "ratio",
    "kv_unexplained_start": "ratio, start",
    "entropy": "entropy",
    "gap_ce": "CE gap",
    "gap_kv": "KV gap",
}
MEANING = (
    "KV: mean squared distance of the student's keys and values to what the teachers give together; start: before the first "
    "update; mean: of a constant, the targets' mean, in the student's place; ratio: KV over that, below 1 is better than the "
    "constant. Gaps: held out over trained, minus 1. Members whose teachers or weights differ have other targets, and their "
    "distances do not compare."
)


def held_out_numbers(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last validation's numbers that are in `NUMBERS` or belong to a teacher, without their "eval_"."""
    last: Mapping[str, Any] = next((line for line in reversed(log) if any(n.startswith("eval_") for n in line)), {})
    numbers = {
        name.removeprefix("eval_"): float(value)
        for name, value in last.items()
        if name.startswith("eval_") and isinstance(value, int | float) and math.isfinite(value)
    }
    of_teachers = [prefix + name for prefix in (TO_TEACHER, WEIGHT_OF) for name in teachers_in(numbers)]
    return {name: numbers[name] for name in dict.fromkeys([*NUMBERS, *of_teachers]) if name in numbers}


def teachers_in(numbers: Mapping[str, float]) -> list[str]:
    """The teachers that have a weight in a validation."""
    return [name.removeprefix(WEIGHT_OF) for name in numbers if name.startswith(WEIGHT_OF)]


def over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Name -> mean, sample sd and count over the seeds that have it; {} where no seed has a mixture of teachers."""
    if not any(map(teachers_in, seeds)):
        return {}
    summary = {}
    for name in dict.fromkeys(name for numbers in seeds for name in numbers):
        values = [numbers[name] for numbers in seeds if name in numbers]
        sd = stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": fmean(values), "std": sd, "num_seeds": len(values)}
    return summary
