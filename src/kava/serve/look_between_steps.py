"""The lens on one question with the engine's own model, in its thread."""

from typing import Any

from kava.config import Recipe
from kava.infer.student import Student
from kava.lens import look
from kava.serve.engine import Engine


def look_between_steps(engine: Engine, recipe: Recipe, question: str, top: int, limit: int) -> dict[str, Any]:
    """The data of `kava.lens.look` with the recipe's M and T. Nothing that another thread reads is changed."""
    served = engine.student
    with engine.thinking(recipe.latent) as model:
        student = Student(model, served.tokenizer, recipe, exact_adapters=served.exact_adapters)
        return look(student, [question], top=top, max_new_tokens=limit).to_dict()
