"""A task's generation settings, in the harness's names and their usual aliases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kava.errors import ConfigError
from kava.infer.checks import check_count
from kava.infer.sampling import Sampling

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts
OF_DRAWS = ("temperature", "top_p", "top_k", "min_p")  # without effect on greedy answers
KNOWN = ("until", "do_sample", *LIMITS, *OF_DRAWS)


@dataclass(frozen=True)
class TaskSettings:
    """`limit` None is the recipe's; an answer ends before the first of `stops`."""

    sampling: Sampling
    limit: int | None
    stops: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The text before the first stop text."""
        return text[: min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=len(text))]


def read_settings(settings: Mapping[str, Any], task: str) -> TaskSettings:
    """The settings of one request; one that a student does not have is refused by name.

    Draws come from torch's generator, which the harness seeds (--seed), so that repeats of a question differ.
    """
    temperature, top_p = settings.get("temperature"), settings.get("top_p", 1.0)
    draws = settings.get("do_sample")
    if draws is None:
        draws = bool(temperature)
    single = {"num_beams": 1, "num_return_sequences": 1}  # written out in some tasks
    unknown = [name for name, value in settings.items() if name not in KNOWN and single.get(name) != value]
    unknown += [name for name in ("top_k", "min_p") if draws and settings.get(name)]
    if unknown:
        problem = f"task {task}: a student has no generation setting {unknown[0]!r}"
        raise ConfigError(problem, f"it has until, do_sample, temperature, top_p, {LIMITS[0]}")
    stops = settings.get("until") or []
    stops = [stops] if isinstance(stops, str) else stops
    limit = next((settings[name] for name in LIMITS if settings.get(name) is not None), None)
    check_count(f"task {task}: max_gen_toks", limit)
    sampling = Sampling(1.0 if temperature is None else temperature, top_p) if draws else Sampling()
    return TaskSettings(sampling, limit, tuple(stop for stop in stops if stop))
