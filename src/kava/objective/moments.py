"""Mean and spread of vectors that come in portions, in float64."""

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation over all vectors."""

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

    def onto(self, other: "Moments") -> tuple[Tensor, Tensor]:
        """gain, shift: x -> gain x + shift has the mean and spread of `other` where x has these."""
        gain = other.std / self.std.clamp(min=1e-12)
        return gain, other.mean - gain * self.mean


class WithinSample:
    """The standard deviation within a sample, mean over the samples with two entries or more."""

    def __init__(self) -> None:
        self.count, self._sum = 0, torch.zeros((), dtype=torch.float64)

    def add(self, entries: Tensor, mask: Tensor) -> None:
        """entries [B, N, d]; mask [B, N]"""
        for sample, kept in zip(entries, mask, strict=True):
            if kept.sum() > 1:
                self.count += 1
                self._sum = self._sum + sample[kept].cpu().double().std(0)

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count
