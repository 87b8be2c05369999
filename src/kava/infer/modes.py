"""The three ways to answer: latent (think in latents), cot (write the steps), direct (neither). No torch."""

from __future__ import annotations

from kava.config import Recipe

MODES = ("latent", "cot", "direct")


def own_mode(recipe: Recipe) -> str:
    """The mode that the student was trained for."""
    return "cot" if recipe.explicit.enabled else "latent"


def untrained(recipe: Recipe, mode: str) -> str | None:
    """Why answers in this mode say little about the student: its recipe did not train them. None if it did."""
    loss = recipe.loss
    if recipe.explicit.enabled:
        return None if mode == "cot" else "not trained for: a student of the explicit line writes its steps"
    if mode == "cot":
        never = "not trained for: loss.teacher_ce was 0, so it never learnt to write steps"
        return None if loss.teacher_ce > 0 else never
    if loss.student_ce == 0:
        return "not trained for: loss.student_ce was 0, so it never learnt to answer without steps"
    if mode == "direct" and recipe.latent.num_tokens > 0:
        return f"not trained for: it was trained with {recipe.latent.num_tokens} latents before every answer"
    return None
