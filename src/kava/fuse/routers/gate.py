"""gate: one Linear(d, S)."""

from typing import Any

from kava.fuse.routers.mlp import MlpRouter


class GateRouter(MlpRouter):
    """An mlp of a single layer."""

    def __init__(self, hidden_dim: int, num_teachers: int, num_layers: int = 1, dropout: float = 0.0, **outputs: Any):
        super().__init__(hidden_dim, num_teachers, min(num_layers, 1), dropout, **outputs)
