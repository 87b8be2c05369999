"""What every fusion shares: the query it weights teachers by, and the call."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kava.errors import ModelError


@dataclass(frozen=True)
class Query:
    """Routing input, from the question only: weights that depended on the answer would leak it into the target.

    hidden [B, d] the student's state (or embedding) of the question; tokens [B, N, d] its states at the CoT columns;
    values [B, L, H*D] the mean of its values over the question, per layer.
    """

    hidden: Tensor | None = None
    tokens: Tensor | None = None
    values: Tensor | None = None


class Fusion(nn.Module):
    """(query, temperature) -> weights [B, L or 1, N or 1, S], >= 0, summing to 1 over the teachers.

    A variant is a file of its own; `of` makes it from a recipe.
    """

    num_teachers: int

    @classmethod
    def of(cls, settings: Any, num_teachers: int, student: Any) -> "Fusion":
        """From a recipe's section `mixture` and the student's cache sizes (num_layers, layer_size, hidden_size)."""
        raise NotImplementedError

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        raise NotImplementedError


def required(part: Tensor | None, name: str) -> Tensor:
    if part is None:
        raise ModelError(f"this fusion looks at the question's {name}, and the query has none")
    return part
