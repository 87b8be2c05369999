"""The three ways to answer: latent (think in latents), cot (write the steps), direct (neither)."""

from __future__ import annotations

import torch

from kava.config import Recipe
from kava.infer.generate import Sampling


def untrained(recipe: Recipe, mode: str) -> str | None:
    """Why answers of this mode say little about the student: nothing in its recipe trained them. None if something did."""
    loss = recipe.loss
    if recipe.explicit.enabled:
        return None if mode == "cot" else "not trained for: a student of the explicit line writes its steps"
    if mode == "cot":
        return (
            None if loss.teacher_ce > 0 else "not trained for: loss.teacher_ce was 0, so it never learnt to write steps"
        )
    if loss.student_ce == 0:
        return "not trained for: loss.student_ce was 0, so it never learnt to answer without steps"
    if mode == "direct" and recipe.latent.num_tokens > 0:
        return f"not trained for: it was trained with {recipe.latent.num_tokens} latents before every answer"
    return None


def sampling_of(recipe: Recipe, temperature: float | None = None, generator: torch.Generator | None = None) -> Sampling:
    """temperature and top_p as the recipe has them, or with another temperature."""
    settings = recipe.evaluation
    return Sampling(settings.temperature if temperature is None else temperature, settings.top_p, generator)
