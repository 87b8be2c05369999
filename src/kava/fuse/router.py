"""A trained router: from a representation of the question to a weight for every teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kava.errors import ConfigError
from kava.shapes import at_least_float32

ROUTERS = ("mlp", "gate", "attention")
TEACHER_STD = 0.02  # start of the teachers' vectors in the attention router


class LearnableRouter(nn.Module):
    """softmax(scores(query) / temperature) over the teachers: query [..., d] -> [..., S].

    mlp        Linear(d, d/2) ReLU Dropout ... Linear(S), `num_layers` linear layers
    gate       one Linear(d, S)
    attention  q(query) . k(e_i) / sqrt(d), with a trained vector e_i for every teacher

    `num_outputs`: number of sets of weights (one per student layer): [..., num_outputs, S]. The last linear layer
    of mlp and gate starts at 0, so that they begin with equal weights; attention begins close to them  [ours].
    """

    def __init__(
        self,
        hidden_dim: int,
        num_teachers: int,
        router_type: str = "mlp",
        num_layers: int = 2,
        dropout: float = 0.1,
        num_outputs: int | None = None,
    ):
        super().__init__()
        if router_type not in ROUTERS:
            raise ConfigError(f"unknown router {router_type!r}", "known: " + ", ".join(ROUTERS))
        if min(hidden_dim, num_teachers, num_layers, num_outputs or 1) < 1:
            raise ConfigError(
                f"a router of {num_layers} layers from {hidden_dim} numbers to {num_outputs or 1} x {num_teachers} weights"
            )
        self.router_type, self.num_teachers, self.num_outputs = router_type, num_teachers, num_outputs
        rows = num_teachers * (num_outputs or 1)
        if router_type == "attention":
            self.query = nn.Linear(hidden_dim, hidden_dim)
            self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
            self.teachers = nn.Parameter(torch.randn(rows, hidden_dim) * TEACHER_STD)
            return
        self.net = _mlp(hidden_dim, rows, num_layers if router_type == "mlp" else 1, dropout)

    def scores(self, query: Tensor) -> Tensor:
        """[..., S] or [..., num_outputs, S], before temperature and softmax."""
        query = query.to(next(self.parameters()).dtype)
        if self.router_type == "attention":
            flat = self.query(query) @ self.key(self.teachers).T / self.teachers.shape[-1] ** 0.5
        else:
            flat = self.net(query)
        return flat if self.num_outputs is None else flat.unflatten(-1, (self.num_outputs, self.num_teachers))

    def forward(self, query: Tensor, temperature: float = 1.0) -> Tensor:
        return torch.softmax(at_least_float32(self.scores(query)) / temperature, dim=-1)


def _mlp(size: int, rows: int, num_layers: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = max(size // 2, 1)
    for _ in range(num_layers - 1):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
        size = width
    last = nn.Linear(size, rows)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
