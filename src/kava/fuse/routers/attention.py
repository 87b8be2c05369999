"""attention: q(query) . k(e_i) / sqrt(d), with a trained vector e_i for every teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from kava.fuse.routers.base import Router

TEACHER_STD = 0.02  # start of the teachers' vectors: close to equal weights  [ours]


class AttentionRouter(Router):
    def __init__(self, hidden_dim: int, num_teachers: int, **settings: Any):
        super().__init__(hidden_dim, num_teachers, **settings)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.teachers = nn.Parameter(torch.randn(self.rows, hidden_dim) * TEACHER_STD)

    def score_rows(self, query: Tensor) -> Tensor:
        return self.query(query) @ self.key(self.teachers).T / self.teachers.shape[-1] ** 0.5
