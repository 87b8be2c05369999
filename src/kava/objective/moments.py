"""Mean and spread of vectors that come in portions, in float64."""

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation over all vectors.

    Portions are merged by their means and squared deviations [Chan, Golub, LeVeque 1979]: a sum of squares would lose
    what varies by 1 around a mean of 1,000, as keys do.
    """

    def __init__(self) -> None:
        self.count, self.rounding = 0, 0.0  # of the vectors' own type
        self._mean = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """vectors [n, d]"""
        if len(vectors) == 0:
            return
        self.rounding = torch.finfo(vectors.dtype).eps
        vectors = vectors.cpu().double()
        mean, count = vectors.mean(0), self.count + len(vectors)
        apart, share = mean - self._mean, len(vectors) / count
        self._square = self._square + (vectors - mean).square().sum(0) + apart.square() * share * self.count
        self._mean = self._mean + apart * share
        self.count = count

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def std(self) -> Tensor:
        return (self._square / max(1, self.count)).sqrt()

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
