"""Linear maps in closed form from a few batches: where projectors and adapters may start."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

STRENGTHS = torch.logspace(-6, 2, 33, dtype=torch.float64)  # of the penalty, in variances of an input
Key = TypeVar("Key", bound=Hashable)


class Ridge:
    """The map y = W x + b with the least  sum |y - W x - b|^2 + strength |W|^2,  all dimensions in their own deviations.

    The strength is the one of the least generalised cross-validation [Golub, Heath, Wahba 1979], so that a few examples
    of wide entries are not learnt by heart.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """inputs [n, p], outputs [n, m]"""
        self._parts.append((inputs.cpu().double(), outputs.cpu().double()))

    @property
    def count(self) -> int:
        return sum(len(inputs) for inputs, _ in self._parts)

    def solve(self) -> tuple[Tensor, Tensor]:
        """W [m, p], b [m]; needs two rows."""
        x, y = (torch.cat(side) for side in zip(*self._parts, strict=True))
        (x_mean, x_std), (y_mean, y_std) = _moments(x), _moments(y)
        x, y = (x - x_mean) / x_std, (y - y_mean) / y_std
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        uy = u.T @ y
        kept = s.square()[:, None] / (s.square()[:, None] + len(x) * STRENGTHS)  # [singular values, strengths]
        left = y.square().sum() - ((2 * kept - kept.square()) * uy.square().sum(1)[:, None]).sum(0)
        free = (len(x) - 1 - kept.sum(0)).clamp(min=1e-9)
        strength = len(x) * STRENGTHS[(left.clamp(min=0) / free.square()).argmin()]
        weight = (v.T * (s / (s.square() + strength))) @ uy  # [p, m]
        weight = (weight * y_std / x_std[:, None]).T
        return weight, y_mean - weight @ x_mean


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each dimension, 1 where nothing varies."""
    std = rows.std(0, unbiased=False)
    return rows.mean(0), torch.where(std > 0, std, 1.0)


@contextmanager
def inputs_of(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """What each module was given last, by its key, while it lasts."""
    inputs: dict[Key, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, key=key: inputs.__setitem__(key, given[0]))  # type: ignore[misc]
        for key, module in modules.items()
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
