"""The check for settings that would be ignored. Their rules stand on the fields (`knob(..., idle=...)`).

A setting is judged only against a setting made at the same place or before it. A recipe that chooses a compressor is
not at fault when the command line then switches the key/value term off; a command line that does both is.
"""

from collections.abc import Collection, Mapping

from kava.config.fields import Idle
from kava.config.keys import KEYS
from kava.config.schema import Recipe


def without_effect(recipe: Recipe, changed: Mapping[str, int], back: Collection[str] = ()) -> tuple[str, str] | None:
    """The first changed key that is ignored, with the reason; None if every change matters.

    `changed` maps each key that was set to the place (a rising number) that set it last; those of `back`, set to their
    defaults again, are causes and not judged.
    """
    for key, place in changed.items():
        for rule in KEYS[key].idle if key in KEYS and key not in back else ():
            cause_place = max((changed[cause] for cause in rule.causes if cause in changed), default=-1)
            if place >= cause_place and rule.when(recipe):
                return key, f"{rule.reason} ({_causes(recipe, rule)})"
    return None


def _causes(recipe: Recipe, rule: Idle) -> str:
    """The values of the causes, e.g. "loss.alpha2_kv = 0"."""
    values = []
    for cause in rule.causes:
        section, _, name = cause.partition(".")
        value = getattr(getattr(recipe, section), name)
        text = [teacher.label for teacher in value] if cause == "mixture.teachers" else value
        values.append(f"{cause} = {text}")
    return ", ".join(values)
