"""Evaluation with other latents, or another M, T, cue or sampling than the student's recipe has."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kava.config import Recipe
from kava.errors import ConfigError
from kava.evaluation.score import cue_of
from kava.infer.checks import check_choice, check_count

if TYPE_CHECKING:  # `kava rescore` runs without torch
    from kava.infer.student import Student

MOST_SAMPLES = 1024


@dataclass(frozen=True)
class EvalOverrides:
    """None: as in the recipe. `part` names the overrides in file names, `fields` in the results.

    `samples`: so many drawn answers to each item; `sampling_seed`: their seed, if not the recipe's.
    """

    ablate: str | None = None
    num_tokens: int | None = None
    num_iterations: int | None = None
    cue: str | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    sampling_seed: int | None = None

    def checked(self, recipe: Recipe, mode: str) -> "EvalOverrides":
        """The values that differ from the recipe's; an override without effect is an error."""
        from kava.infer.ablate import ABLATIONS

        check_choice("ablate", self.ablate, tuple(ABLATIONS))
        check_choice("cue", self.cue, ("given", "generated"))
        check_count("num_tokens", self.num_tokens, 0, 4096)
        check_count("num_iterations", self.num_iterations, 0, 4096)
        for name in ("num_tokens", "num_iterations", "ablate"):
            if getattr(self, name) is not None and mode != "latent":
                raise ConfigError(f"--{name} has no effect in mode {mode}", "only mode latent has latents")
        check_count("samples", self.samples, 1, MOST_SAMPLES)
        check_count("sampling_seed", self.sampling_seed, 0)
        latent, settings = recipe.latent, recipe.evaluation
        own: dict[str, Any] = {"num_tokens": latent.num_tokens, "num_iterations": latent.num_iterations, "samples": 1}
        own |= {"cue": cue_of(recipe, mode), "temperature": settings.temperature, "top_p": settings.top_p}
        overrides = replace(self, **{name: None for name, value in own.items() if getattr(self, name) == value})
        if overrides.cue is not None and mode == "cot":
            raise ConfigError("--cue given has no effect in mode cot", "a chain of thought always writes its own cue")
        _check_thinking(recipe, overrides)
        self._check_sampling(recipe)
        return overrides

    def _check_sampling(self, recipe: Recipe) -> None:
        from kava.infer.sampling import Sampling

        settings = recipe.evaluation
        temperature = settings.temperature if self.temperature is None else self.temperature
        Sampling(temperature, settings.top_p if self.top_p is None else self.top_p)
        if temperature == 0:
            hint = "give --temperature, such as 0.7"
            if self.samples is not None and self.samples > 1:
                raise ConfigError(f"--samples {self.samples}: at temperature 0 all answers are the same", hint)
            for name in ("top_p", "sampling_seed"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name} has no effect at temperature 0", hint)

    @property
    def part(self) -> str:
        texts = {
            "M": self.num_tokens, "T": self.num_iterations, "cue_": self.cue, "samples": self.samples,
            "temp": self.temperature, "topp": self.top_p, "seed": self.sampling_seed,
        }  # fmt: skip
        words = [
            (name, f"{value:g}" if isinstance(value, float) else str(value))
            for name, value in texts.items()
            if value is not None
        ]
        return "".join(f".{name}{word.replace('.', '-')}" for name, word in words)

    @property
    def fields(self) -> dict[str, Any]:
        """Cue, temperature, top_p and the seed of sampling are not among them: results have them anyway."""
        names = ("ablate", "num_tokens", "num_iterations", "samples")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def check_items(self, items: Sequence[object], name: str) -> None:
        if self.ablate not in (None, "zero") and len(items) < 2:
            message = f"--ablate {self.ablate} needs two items or more, {name} has {len(items)}"
            raise ConfigError(message, "ask more, or ablate zero")

    @contextmanager
    def applied(self, student: "Student") -> Iterator[Recipe]:
        """Temporarily overrides M, T, cue and sampling; yields the recipe with them."""
        before = student.recipe
        try:
            student.recipe = overridden(before, self)
            student.model.latent = student.recipe.latent
            yield student.recipe
        finally:
            student.recipe, student.model.latent = before, before.latent


UNCHANGED = EvalOverrides()


def overridden(recipe: Recipe, overrides: EvalOverrides) -> Recipe:
    """The recipe with these M, T, cue, temperature and top_p."""
    by_section = {"latent": ("num_tokens", "num_iterations"), "evaluation": ("cue", "temperature", "top_p")}
    for section, names in by_section.items():
        changes = {name: value for name in names if (value := getattr(overrides, name)) is not None}
        recipe = recipe.changed(section, **changes)
    return recipe


def _check_thinking(recipe: Recipe, overrides: EvalOverrides) -> None:
    trained, new = recipe.latent, overridden(recipe, overrides).latent
    if overrides.num_iterations is not None and trained.method == "sequential":
        raise ConfigError("--num_iterations has no effect: this student makes one latent after the other")
    if overrides.num_iterations is not None and new.num_tokens == 0:
        raise ConfigError("--num_iterations has no effect: there are no latents (M = 0)")
    before = "this student was trained with"
    if new.num_tokens > 0 and trained.num_tokens == 0:
        raise ConfigError(f"--num_tokens: {before}out latents (M = 0)", "it has nothing to fill them")
    if new.feeds_back and not trained.feeds_back:
        raise ConfigError(f"--num_iterations: {before} pause tokens (T = 0)", "it never learnt to feed states back")
    if overrides.ablate is not None and not new.feeds_back:
        why = "there are no latents (M = 0)" if new.num_tokens == 0 else "pause tokens (T = 0) carry no thought"
        raise ConfigError(f"--ablate has no effect: {why}", "ablate a student that thinks")
