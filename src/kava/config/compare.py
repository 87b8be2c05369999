"""Compares two recipes."""

from kava.config.load import explain
from kava.config.schema import Recipe

FREE_TO_CHANGE = (
    "about.", "logging.", "evaluation.", "system.num_workers", "system.device", "system.sharding",
    "system.attention", "training.tokens_per_piece", "dataset.keep_tokens",
    "model.trust_remote_code", "teacher.trust_remote_code",
)  # fmt: skip


def differing(before: Recipe, now: Recipe) -> list[str]:
    """A line for each different setting that changes what is learnt.

    The workers of a stream belong to it: each reads every n-th example, so their number decides about the batches.
    """
    old, new = ({row.key: row.value for row in explain(recipe)} for recipe in (before, now))
    counted = ("latent.num_tokens",) if now.rkv.full_slots else ()  # M was taken from the data, not set
    free = [key for key in FREE_TO_CHANGE if not (key == "system.num_workers" and now.dataset.streaming)]
    keys = [key for key in {**old, **new} if not key.startswith((*free, *counted))]
    pairs = [(key, old.get(key, "not set"), new.get(key, "not set")) for key in keys]  # training.hf has free keys
    return [f"{key} was {was}, is {has}" for key, was, has in pairs if was != has]
