"""One problem as text, the common form of all data sources."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A question, the steps of its chain of thought, and the final answer (no eos, no cue).

    `id` is stable: the same row of the same set has the same id on every machine and in every run, because
    the draws of random compressors depend on (seed, epoch, id) and never on the batch.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str


def stable_hash(text: str, salt: str = "") -> int:
    """A 63-bit non-negative hash that is the same in every process (unlike Python's `hash`)."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=salt.encode("utf-8")[:16]).digest()
    return int.from_bytes(digest, "big") >> 1


def content_hash(examples: Iterable[Example]) -> str:
    """sha256 over question, steps and answer in order, without ids."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.question, *example.steps, example.answer):
            digest.update(part.encode("utf-8"))
            digest.update(b"\x1f")
        digest.update(b"\x1e")
    return digest.hexdigest()
