"""What every router shares: the call, and the softmax over teachers."""

import torch
from torch import Tensor, nn

from kava.errors import ConfigError
from kava.shapes import at_least_float32


class Router(nn.Module):
    """softmax(scores(query) / temperature) over the teachers: query [..., d] -> [..., S].

    A variant is a file of its own with a class that overrides `score_rows`. `num_outputs`: number of sets of weights
    (one per student layer): [..., num_outputs, S].
    """

    def __init__(
        self,
        hidden_dim: int,
        num_teachers: int,
        num_layers: int = 2,
        dropout: float = 0.1,
        num_outputs: int | None = None,
    ):
        super().__init__()
        if min(hidden_dim, num_teachers, num_layers, num_outputs or 1) < 1:
            raise ConfigError(
                f"a router of {num_layers} layers from {hidden_dim} numbers to {num_outputs or 1} x {num_teachers} weights"
            )
        self.num_teachers, self.num_outputs = num_teachers, num_outputs
        self.rows = num_teachers * (num_outputs or 1)

    def score_rows(self, query: Tensor) -> Tensor:
        """[..., rows]: a score for every teacher, and with `num_outputs` for every teacher of every set."""
        raise NotImplementedError

    def scores(self, query: Tensor) -> Tensor:
        """[..., S] or [..., num_outputs, S], before temperature and softmax."""
        rows = self.score_rows(query.to(next(self.parameters()).dtype))
        return rows if self.num_outputs is None else rows.unflatten(-1, (self.num_outputs, self.num_teachers))

    def forward(self, query: Tensor, temperature: float = 1.0) -> Tensor:
        return torch.softmax(at_least_float32(self.scores(query)) / temperature, dim=-1)
