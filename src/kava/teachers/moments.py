"""Mean and spread of vectors that come in portions."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation of vectors that come in portions, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._square = torch.zeros(())

    def add(self, vectors: Tensor) -> None:
        """vectors [n, d]"""
        vectors = vectors.cpu().double()
        self.count += len(vectors)
        self._sum = self._sum + vectors.sum(0)
        self._square = self._square + vectors.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def std(self) -> Tensor:
        return (self._square / self.count - self.mean.square()).clamp(min=0).sqrt()
