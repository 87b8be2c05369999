"""fixed: the same weights for everything."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kava.errors import ConfigError
from kava.fuse.fusions.base import Fusion, Query


class Fixed(Fusion):
    """The same weights [1, 1, 1, S] for every input; the temperature is ignored."""

    weights: Tensor

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        row = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
        if not len(row) or bool((row < 0).any()) or abs(float(row.sum()) - 1) > 1e-6:
            raise ConfigError(f"fusion weights {list(weights)} must be >= 0 and sum to 1", "see mixture.weights")
        self.num_teachers = len(row)
        self.register_buffer("weights", (row / row.sum()).float())

    @classmethod
    def of(cls, settings: Any, num_teachers: int, student: Any) -> "Fixed":
        return cls(settings.weights or [1 / num_teachers] * num_teachers)

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        return self.weights[None, None, None]
