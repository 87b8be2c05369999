"""What an experiment is, as data: its members, each one a recipe's settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kava.config import Recipe


class SuiteMember(NamedTuple):
    """One student: the name of its folder, its title, its settings over the recipe, how it answers, and the member whose
    best checkpoint it starts from."""

    name: str
    title: str
    settings: tuple[str, ...] = ()
    mode: str = "latent"
    after: str = ""


@dataclass(frozen=True)
class Suite:
    """`line` names the folder of its members; members depend on the recipe, those of `by_layer` on the student's number of
    layers too. `needs` says what a recipe without members lacks."""

    name: str
    title: str
    line: Callable[[Recipe], str]
    of_recipe: Callable[[Recipe], Sequence[SuiteMember]]
    needs: str = ""
    by_layer: Callable[[Recipe, int], Sequence[SuiteMember]] | None = None
    derived: tuple[str, ...] = ()  # settings from which each member makes its own
    analyze: tuple[str, ...] | None = ()  # flags of `kava analyze` after it; None: it has no claims

    def members(self, recipe: Recipe) -> tuple[SuiteMember, ...]:
        """The members that the recipe has; on the explicit line all write their steps."""
        explicit = recipe.explicit.enabled
        return tuple(member._replace(mode="cot") if explicit else member for member in self.of_recipe(recipe))
