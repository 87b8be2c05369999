"""mlp: Linear(d, d/2) ReLU Dropout ... Linear(S), `num_layers` linear layers."""

from typing import Any

from torch import Tensor, nn

from kava.fuse.routers.base import Router


class MlpRouter(Router):
    """The last linear layer starts at 0, so that all teachers begin with equal weights  [ours]."""

    def __init__(self, hidden_dim: int, num_teachers: int, num_layers: int = 2, dropout: float = 0.1, **outputs: Any):
        super().__init__(hidden_dim, num_teachers, num_layers, dropout, **outputs)
        layers: list[nn.Module] = []
        size, width = hidden_dim, max(hidden_dim // 2, 1)
        for _ in range(num_layers - 1):
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
            size = width
        last = nn.Linear(size, self.rows)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def score_rows(self, query: Tensor) -> Tensor:
        return self.net(query)
