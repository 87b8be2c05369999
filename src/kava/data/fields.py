"""The fields of a row that are read, and those that are only spelt nearly like one."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

QUESTION = ("question", "prompt", "problem")
ANSWER = ("answer", "target", "answer_text")
STEPS = "steps"
READ = (*QUESTION, *ANSWER, STEPS)
LIKE_STEPS = ("cot", "chain_of_thought", "rationale", "reasoning", "solution", "explanation", "thought", "working")


@lru_cache(maxsize=4096)
def misspelt(fields: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The fields that nothing reads but that are spelt nearly like one that is, each with that one."""
    names = [(str(field), str(field).lower()) for field in fields]
    pairs = ((name, known) for name, lower in names if name not in READ for known in READ if _near(lower, known))
    return tuple(dict(reversed(list(pairs))).items())


def unread_steps(row: Mapping[str, Any]) -> list[str]:
    """The fields of a row without steps that look like its chain of thought: by their name, or a list of texts."""
    fields = [(str(name), value) for name, value in row.items() if name not in READ and value]
    return [
        name for name, value in fields
        if (isinstance(value, list) and all(isinstance(part, str) for part in value))
        or (isinstance(value, str) and any(like in name.lower() for like in LIKE_STEPS))
    ]  # fmt: skip


def _near(word: str, known: str) -> bool:
    """Whether one slip makes one of the other: a letter too many, missing, wrong, or two swapped."""
    if word == known:
        return True
    if len(word) > len(known):
        word, known = known, word
    if len(word) < 4 or len(known) - len(word) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(word, known, strict=False)) if a != b), len(word))
    if len(word) < len(known):
        return word[at:] == known[at + 1 :]
    swapped = word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
    return word[at + 1 :] == known[at + 1 :] or swapped == known[at:]
