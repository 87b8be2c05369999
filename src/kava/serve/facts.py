"""What a client may want to know of the student before it asks: in /v1/models, under "kava"."""

from typing import Any

from kava.config import BUILTIN_DATASETS, Recipe
from kava.data.generator import Generator
from kava.infer.checks import MODES, arithmetic, own_mode, untrained

WORD_PROBLEMS = (
    "Mia has 3 boxes with 8 pencils in each and gives away 5 pencils. How many pencils are left?",
    "A ticket costs 6 dollars. Leo buys 4 and pays with 50 dollars. How many dollars does he get back?",
    "Ana reads 12 pages a day from Monday to Friday and 20 on Saturday. How many pages does she read?",
)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """M, T, the mode it was trained for, why other modes say little, and questions of the kind that it knows."""
    return {
        "reasoning": own_mode(recipe),
        "num_tokens": 0 if recipe.explicit.enabled else recipe.latent.num_tokens,
        "num_iterations": recipe.latent.num_iterations,
        "method": recipe.latent.method,
        "untrained": {mode: note for mode in MODES if (note := untrained(recipe, mode)) is not None},
        "notes": [note] if (note := arithmetic(recipe)) is not None else [],
        "examples": _examples(recipe),
    }


def _examples(recipe: Recipe) -> list[str]:
    """Three questions; of a built-in set, the longest problems, of the split that it is not trained on."""
    if recipe.dataset.name not in BUILTIN_DATASETS:
        return list(WORD_PROBLEMS)
    return Generator(recipe.dataset.name, recipe.dataset.generator).questions(len(WORD_PROBLEMS))
