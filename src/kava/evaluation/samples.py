"""Several drawn answers to each item: pass@k, the majority vote and the likeliest of n.

pass@k   1 - C(n - c, k) / C(n, k), the mean over items with c right ones among n: unbiased for the chance that one of
         k answers is right (Chen et al. 2021, arXiv 2107.03374)
maj@n    the number that most of the n answers mark; of equally many the one that came first
best@n   the answer with the highest mean log-probability per token (at temperature 1)
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from statistics import fmean
from typing import Any

from kava import answers

# what a line of predictions keeps of each sample
OF_SAMPLE = (
    "text", "strict_value", "value", "correct", "correct_flexible", "truncated", "forward_passes", "executed_calls",
    "generated_tokens", "log_probability",
)  # fmt: skip


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k answers, drawn without replacement from n with so many correct ones, is correct."""
    return 1 - comb(n - correct, k) / comb(n, k)


def vote(values: Sequence[str | None]) -> tuple[int, int]:
    """The place of the first answer with the number that most answers have, and how many have it.

    Answers without a number do not vote; where none has one, it is the first, with no vote.
    """
    numbers = [answers.number(value) for value in values]
    counts: Counter[Fraction] = Counter(number for number in numbers if number is not None)
    if not counts:
        return 0, 0
    winner, votes = counts.most_common(1)[0]  # in the order in which they came
    return numbers.index(winner), votes


def likeliest(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sample with the highest mean log-probability per token."""
    return max(samples, key=lambda sample: sample["log_probability"] / max(1, sample["generated_tokens"]))


def combined(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of predictions from the judged answers to an item: the voted answer, what all of them took, and all of them.

    The question is read and thought about once: forward passes and calls are those of the first answer and the tokens of
    the others.
    """
    place, votes = vote([sample["strict_value"] for sample in samples])
    further = sum(sample["generated_tokens"] for sample in samples[1:])
    together = {name: samples[0][name] + further for name in ("forward_passes", "executed_calls", "generated_tokens")}
    kept = [{name: sample[name] for name in OF_SAMPLE} for sample in samples]
    return samples[place] | together | {"votes": votes, "samples": kept}


def sampled_summary(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a results file about n samples of each item; {} where there is one answer each.

    An item that was too long has no samples and counts as wrong.
    """
    count = max((len(item.get("samples", ())) for item in predictions), default=0)
    if count < 2:
        return {}
    per_item = [item.get("samples", ()) for item in predictions]
    right = [sum(sample["correct"] for sample in samples) for samples in per_item]
    best = sum(likeliest(samples)["correct"] for samples in per_item if samples)
    total = len(predictions)
    return {
        "metric": f"maj@{count}: the number that most of {count} answers have right behind the cue equals the gold number",
        "pass_at_k": {k: fmean(pass_at_k(count, c, k) for c in right) for k in range(1, count + 1)},
        "correct_samples": sum(right),
        "maj_at_n": {"n": count, "correct": sum(item["correct"] for item in predictions), "total": total},
        "best_at_n": {"n": count, "correct": best, "total": total},
    }
