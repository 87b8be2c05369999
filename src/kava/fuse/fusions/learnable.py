"""learnable: a trained router (`fuse/routers`) on the question."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from kava.fuse.fusions.base import Fusion, Query, required
from kava.fuse.routers import LearnableRouter
from kava.shapes import at_least_float32


class Learnable(Fusion):
    """A router on the question, or with `per_token` on each CoT token; `layers` sets of weights, or one.

    Its input is normalised to mean 0 and variance 1: hidden states of large models have a few huge entries  [ours].
    """

    def __init__(
        self,
        hidden: int,
        num_teachers: int,
        router: str = "mlp",
        layers: int = 1,
        per_token: bool = False,
        **settings: Any,
    ):
        super().__init__()
        self.num_teachers, self.per_token = num_teachers, per_token
        self.router = LearnableRouter(hidden, num_teachers, router, num_outputs=layers, **settings)

    @classmethod
    def of(cls, settings: Any, num_teachers: int, student: Any) -> "Learnable":
        sizes = student.hidden_size, num_teachers, settings.router, student.num_layers if settings.per_layer else 1
        depth, dropout = settings.router_layers, settings.router_dropout
        return cls(*sizes, settings.per_token, num_layers=depth, dropout=dropout)

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        states = required(query.tokens, "tokens") if self.per_token else required(query.hidden, "hidden")[:, None]
        states = functional.layer_norm(at_least_float32(states), states.shape[-1:])
        return self.router(states, temperature).transpose(1, 2)  # [B, N or 1, L or 1, S] -> [B, L or 1, N or 1, S]
