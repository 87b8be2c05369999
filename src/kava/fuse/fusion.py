"""Ways to weight the teachers, with one call: fixed weights, similarity to prototypes, or a trained router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kava.errors import ConfigError, ModelError
from kava.fuse.prototypes import METRICS, layered_similarity
from kava.fuse.router import LearnableRouter
from kava.shapes import at_least_float32


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
    """(query, temperature) -> weights [B, L or 1, N or 1, S], >= 0, summing to 1 over the teachers."""

    num_teachers: int

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        raise NotImplementedError


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

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        return self.weights[None, None, None]


class Similar(Fusion):
    """softmax(similarity / temperature) of the question's values to each teacher's prototypes [S, L, C, d].

    One set of weights per layer, or from the mean similarity over layers. Nothing is trained; prototypes are saved.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, metric: str = "cosine", per_layer: bool = False):
        super().__init__()
        if metric not in METRICS:
            raise ConfigError(f"unknown similarity {metric!r}", "known: " + ", ".join(METRICS))
        if prototypes.dim() != 4:
            raise ModelError(f"prototypes are [teachers, layers, centres, d], not {tuple(prototypes.shape)}")
        self.metric, self.per_layer = metric, per_layer
        self.num_teachers = len(prototypes)
        self.register_buffer("prototypes", at_least_float32(prototypes.detach().clone()))

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        values = _required(query.values, "values")
        if values.shape[1:] != (self.prototypes.shape[1], self.prototypes.shape[3]):
            raise ModelError(
                f"prototypes of {self.prototypes.shape[1]} layers x {self.prototypes.shape[3]}, "
                f"but the question has {values.shape[1]} x {values.shape[2]}"
            )
        scores = layered_similarity(values, self.prototypes, self.metric)  # [B, L, S]
        if not self.per_layer:
            scores = scores.mean(1, keepdim=True)
        return torch.softmax(scores / temperature, dim=-1)[:, :, None]


class Learnable(Fusion):
    """A `LearnableRouter` on the question, or with `per_token` on each CoT token; `layers` sets of weights, or one.

    Its input is normalised to mean 0 and variance 1: hidden states of large models have a few huge entries  [ours].
    """

    def __init__(
        self,
        hidden: int,
        num_teachers: int,
        router: str = "mlp",
        layers: int = 1,
        per_token: bool = False,
        num_layers: int = 2,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.num_teachers, self.per_token = num_teachers, per_token
        self.router = LearnableRouter(hidden, num_teachers, router, num_layers, dropout, num_outputs=layers)

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        states = _required(query.tokens, "tokens") if self.per_token else _required(query.hidden, "hidden")[:, None]
        states = functional.layer_norm(at_least_float32(states), states.shape[-1:])
        return self.router(states, temperature).transpose(1, 2)  # [B, N or 1, L or 1, S] -> [B, L or 1, N or 1, S]


def _required(part: Tensor | None, name: str) -> Tensor:
    if part is None:
        raise ModelError(f"this fusion looks at the question's {name}, and the query has none")
    return part
