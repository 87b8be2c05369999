"""Evaluation with other latents, or another M, T or cue than the student's recipe has."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kava.config import Recipe
from kava.errors import ConfigError
from kava.evaluation.score import cue_of
from kava.infer.checks import check_choice, check_count

if TYPE_CHECKING:  # `kava rescore` runs without torch
    from kava.infer.student import Student


@dataclass(frozen=True)
class EvalOverrides:
    """None: as in the recipe. `part` names the overrides in file names, `fields` in the results."""

    ablate: str | None = None
    num_tokens: int | None = None
    num_iterations: int | None = None
    cue: str | None = None

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
        latent = recipe.latent
        own = {"num_tokens": latent.num_tokens, "num_iterations": latent.num_iterations, "cue": cue_of(recipe, mode)}
        overrides = replace(self, **{name: None for name, value in own.items() if getattr(self, name) == value})
        if overrides.cue is not None and mode == "cot":
            raise ConfigError("--cue given has no effect in mode cot", "a chain of thought always writes its own cue")
        _check_thinking(recipe, overrides)
        return overrides

    @property
    def part(self) -> str:
        texts = {"M": self.num_tokens, "T": self.num_iterations, "cue_": self.cue}
        return "".join(f".{name}{value}" for name, value in texts.items() if value is not None)

    @property
    def fields(self) -> dict[str, Any]:
        """The cue is not among them: results always have it."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "cue"}

    def check_items(self, items: Sequence[object], name: str) -> None:
        if self.ablate not in (None, "zero") and len(items) < 2:
            message = f"--ablate {self.ablate} needs two items or more, {name} has {len(items)}"
            raise ConfigError(message, "ask more, or ablate zero")

    @contextmanager
    def applied(self, student: "Student") -> Iterator[Recipe]:
        """Temporarily overrides M, T and the cue; yields the recipe with them."""
        before = student.recipe
        try:
            student.recipe = overridden(before, self)
            student.model.latent = student.recipe.latent
            yield student.recipe
        finally:
            student.recipe, student.model.latent = before, before.latent


UNCHANGED = EvalOverrides()


def overridden(recipe: Recipe, overrides: EvalOverrides) -> Recipe:
    """The recipe with these M, T and cue."""
    latent = {name: value for name, value in overrides.fields.items() if name != "ablate"}
    return recipe.changed("latent", **latent).changed("evaluation", cue=overrides.cue or recipe.evaluation.cue)


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
