"""Data cards: counts of a dataset's rows, so that numbers in a table can be traced to their data."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from kava.data.encode import Encoded, EncodedSet
from kava.data.example import Example, content_hash
from kava.data.sources import known_source
from kava.data.tasks import TASKS
from kava.errors import DataError


def card(
    encoded: Sequence[Encoded], examples: Sequence[Example], keep: int, other: Iterable[Example] | None = None
) -> dict[str, Any]:
    """Counts of one split. `keep` is M; `other` is the split whose questions must not be here (test, for train).

    share_cot_below_keep: share with N_C < M, N_C = 0 included.  share_no_result: share with N_C > 0 of which no token
    carries a step's result.  shared_questions: questions that are also in `other`; null without `other`.
    Shares are null if nothing was counted.
    """
    lengths = [len(e.cot) for e in encoded] if not isinstance(encoded, EncodedSet) else encoded.lengths("cot").tolist()
    with_cot = [e for e in encoded if e.cot]
    return {
        "examples": len(examples),
        "encoded": len(encoded),
        "sha256": content_hash(examples),
        "keep": keep,
        "mean_steps": _mean([len(e.steps) for e in examples]),
        "mean_cot_tokens": _mean(lengths),
        "max_cot_tokens": max(lengths, default=None),
        "share_cot_below_keep": _mean([n < keep for n in lengths]),
        "share_cot_empty": _mean([n == 0 for n in lengths]),
        "share_no_result": _mean([not any(e.result) for e in with_cot]),
        "shared_questions": None if other is None else len(_questions(examples) & _questions(other)),
    }


def in_words(card: Mapping[str, Any]) -> str:
    """A run's data card as a line: how many examples, how long their chains of thought are."""
    if card.get("streaming"):
        return "a stream of examples"
    words = [f"{card['examples']:,} examples"]
    if card.get("skipped"):
        words.append(f"{card['skipped']:,} of them too long and skipped")
    if card["mean_steps"]:
        words.append(f"{card['mean_steps']:.1f} steps on average")
    if card["max_cot_tokens"]:
        words.append(f"{card['mean_cot_tokens']:.1f} tokens of thought, at most {card['max_cot_tokens']}")
    return ", ".join(words)


def shipped_card(name: str) -> str:
    """The Markdown card that the package ships for a built-in dataset or a known source."""
    source = known_source(name)
    if source is None and name not in TASKS:
        raise DataError(f"there is no card for the data set {name!r}")
    stem = TASKS[name].card if source is None else source.name
    return resources.files("kava.data").joinpath(f"cards/{stem}.md").read_text(encoding="utf-8")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _questions(examples: Iterable[Example]) -> set[str]:
    return {" ".join(e.question.lower().split()) for e in examples}
