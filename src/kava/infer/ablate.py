"""What an answer depends on: another latent in the place of each one that was thought.

The intervention is on the latents' final input embeddings e_1..e_M, what the rounds have carried so far. Their keys and
values are then made as ever, in the last pass, from these embeddings and from the question, and the answer reads the
question, too. It has to be so: through attention the question is readable at every place behind it, so no intervention
on the latents takes it away. An accuracy that stays says that nothing the rounds carried was needed; one that falls
says how much was.                                                                                                 [ours]

    zero    e_i = 0
    mean    e_i = mean of e_i over the asked set: the set's, not this question's
    swap    the latents of the next item of the set, the first one's for the last: right in form, of another question
    noise   Gaussian with mean and standard deviation of each slot and dimension, drawn from the item's id alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kava.data.example import stable_hash

Ablation = Callable[
    [Tensor, Sequence[str]], Tensor
]  # latents [n, M, E] of the whole set, ids of its items -> [n, M, E]


def zero(latents: Tensor, ids: Sequence[str]) -> Tensor:
    return torch.zeros_like(latents)


def mean(latents: Tensor, ids: Sequence[str]) -> Tensor:
    return latents.mean(0).expand_as(latents)


def swap(latents: Tensor, ids: Sequence[str]) -> Tensor:
    return latents.roll(-1, 0)


def noise(latents: Tensor, ids: Sequence[str]) -> Tensor:
    drawn = [torch.randn(latents.shape[1:], generator=_generator(one)) for one in ids]
    return latents.mean(0) + latents.std(0) * torch.stack(drawn)


def _generator(example_id: str) -> torch.Generator:
    return torch.Generator().manual_seed(stable_hash(example_id, "noise"))


ABLATIONS: dict[str, Ablation] = {"zero": zero, "mean": mean, "swap": swap, "noise": noise}
