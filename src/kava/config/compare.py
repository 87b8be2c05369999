"""Compares two recipes."""

from kava.config.load import explain
from kava.config.schema import Recipe

FREE_TO_CHANGE = ("about.", "logging.", "evaluation.", "system.num_workers", "system.device")


def differing(before: Recipe, now: Recipe) -> list[str]:
    """A line for each different setting that changes what is learnt."""
    old, new = ({row.key: row.value for row in explain(recipe)} for recipe in (before, now))
    counted = ("latent.num_tokens",) if now.rkv.full_slots else ()  # M was taken from the data, not set
    keys = [key for key in {**old, **new} if not key.startswith((*FREE_TO_CHANGE, *counted))]
    pairs = [(key, old.get(key, "not set"), new.get(key, "not set")) for key in keys]  # training.hf has free keys
    return [f"{key} was {was}, is {has}" for key, was, has in pairs if was != has]
