"""What one evaluation does otherwise than the student's recipe says: other latents, another M, T or cue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kava.config import Recipe
from kava.errors import ConfigError
from kava.evaluation.score import cue_of

if TYPE_CHECKING:
    from kava.infer.student import Student


@dataclass(frozen=True)
class EvalOverrides:
    """None: as the recipe says. `part` is what the files' names say of it, `fields` what the results do."""

    ablate: str | None = None
    num_tokens: int | None = None
    num_iterations: int | None = None
    cue: str | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        mode: str,
        ablate: str | None = None,
        num_tokens: int | None = None,
        num_iterations: int | None = None,
        cue: str | None = None,
    ) -> EvalOverrides:
        """Those that differ from what the recipe says; a change without effect is an error."""
        latent = recipe.latent
        asked = cls(
            ablate,
            None if num_tokens == latent.num_tokens else num_tokens,
            None if num_iterations == latent.num_iterations else num_iterations,
            None if cue == cue_of(recipe, mode) else cue,
        )
        given = {"--num_tokens": num_tokens, "--num_iterations": num_iterations, "--ablate": ablate}
        for flag in (flag for flag, value in given.items() if value is not None):
            if mode != "latent":
                raise ConfigError(f"{flag} has no effect in mode {mode}", "only mode latent has latents")
        if asked.cue is not None and mode == "cot":
            raise ConfigError("--cue given has no effect in mode cot", "a chain of thought always writes its own cue")
        _check_thinking(recipe, asked)
        return asked

    @property
    def part(self) -> str:
        texts = {"M": self.num_tokens, "T": self.num_iterations, "cue_": self.cue}
        return "".join(f".{name}{value}" for name, value in texts.items() if value is not None)

    @property
    def fields(self) -> dict[str, Any]:
        """The cue is always there under its own name."""
        texts = {"ablate": self.ablate, "num_tokens": self.num_tokens, "num_iterations": self.num_iterations}
        return {name: value for name, value in texts.items() if value is not None}

    def check_items(self, items: Sequence[object], name: str) -> None:
        if self.ablate not in (None, "zero") and len(items) < 2:
            raise ConfigError(
                f"--ablate {self.ablate} needs two items or more, {name} has {len(items)}", "ask more, or ablate zero"
            )

    @contextmanager
    def applied(self, student: Student) -> Iterator[Recipe]:
        """Inside the block the student thinks with this M and T and answers behind this cue; gives its recipe then."""
        before = student.recipe
        try:
            student.recipe = changed(before, self)
            student.model.latent = student.recipe.latent
            yield student.recipe
        finally:
            student.recipe, student.model.latent = before, before.latent


UNCHANGED = EvalOverrides()


def changed(recipe: Recipe, changes: EvalOverrides) -> Recipe:
    """The recipe with these M, T and cue."""
    new = {name: value for name, value in changes.fields.items() if name != "ablate"}
    evaluation = recipe.evaluation.model_copy(update={"cue": changes.cue or recipe.evaluation.cue})
    return recipe.model_copy(update={"latent": recipe.latent.model_copy(update=new), "evaluation": evaluation})


def _check_thinking(recipe: Recipe, asked: EvalOverrides) -> None:
    trained, new = recipe.latent, changed(recipe, asked).latent
    if asked.num_iterations is not None and trained.method == "sequential":
        raise ConfigError("--num_iterations has no effect: this student makes one latent after the other")
    if asked.num_iterations is not None and new.num_tokens == 0:
        raise ConfigError("--num_iterations has no effect: there are no latents (M = 0)")
    if new.num_tokens > 0 and trained.num_tokens == 0:
        raise ConfigError(
            "--num_tokens: this student was trained without latents (M = 0)", "it has nothing to fill them"
        )
    if new.feeds_back and not trained.feeds_back:
        raise ConfigError(
            "--num_iterations: this student was trained with pause tokens (T = 0)",
            "it never learnt to feed states back",
        )
    if asked.ablate is not None and not new.feeds_back:
        why = "there are no latents (M = 0)" if new.num_tokens == 0 else "pause tokens (T = 0) carry no thought"
        raise ConfigError(f"--ablate has no effect: {why}", "ablate a student that thinks")
