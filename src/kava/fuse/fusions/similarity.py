"""similarity: softmax over how close the question's values are to each teacher's prototypes."""

from typing import Any

import torch
from torch import Tensor

from kava.errors import ModelError
from kava.fuse.fusions.base import Fusion, Query, required
from kava.fuse.prototypes import METRICS, layered_similarity
from kava.registry import check_known
from kava.shapes import at_least_float32


class Similar(Fusion):
    """softmax(similarity / temperature) of the question's values to each teacher's prototypes [S, L, C, d].

    One set of weights per layer, or from the mean similarity over layers. Nothing is trained; prototypes are saved.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, metric: str = "cosine", per_layer: bool = False):
        super().__init__()
        check_known("similarity", metric, METRICS)
        if prototypes.dim() != 4:
            raise ModelError(f"prototypes are [teachers, layers, centres, d], not {tuple(prototypes.shape)}")
        self.metric, self.per_layer = metric, per_layer
        self.num_teachers = len(prototypes)
        self.register_buffer("prototypes", at_least_float32(prototypes.detach().clone()))

    @classmethod
    def of(cls, settings: Any, num_teachers: int, student: Any) -> "Similar":
        """With prototypes of zeros, until `objective/calibration.py` has made them."""
        centres = settings.centres if settings.prototype == "kmeans" else 1
        empty = torch.zeros(num_teachers, student.num_layers, centres, student.layer_size)
        return cls(empty, settings.similarity, settings.per_layer)

    def forward(self, query: Query, temperature: float = 1.0) -> Tensor:
        values = required(query.values, "values")
        if values.shape[1:] != (self.prototypes.shape[1], self.prototypes.shape[3]):
            raise ModelError(
                f"prototypes of {self.prototypes.shape[1]} layers x {self.prototypes.shape[3]}, "
                f"but the question has {values.shape[1]} x {values.shape[2]}"
            )
        scores = layered_similarity(values, self.prototypes, self.metric)  # [B, L, S]
        if not self.per_layer:
            scores = scores.mean(1, keepdim=True)
        return torch.softmax(scores / temperature, dim=-1)[:, :, None]
