"""Ablations of the latents: does the answer depend on what was thought?

The intervention replaces the latents' final input embeddings e_1..e_M, which is what the rounds have carried. Their keys
and values are then computed as usual in the last pass, from these embeddings and the question; the answer also reads the
question. No intervention on the latents can remove the question, which attention makes readable at every later position.
If accuracy stays, nothing the rounds carried was needed; how far it falls says how much was.                     [ours]

    zero    e_i = 0
    mean    e_i = mean of e_i over the whole evaluated set
    swap    the latents of the next item of the set, the first item's for the last: valid latents of another question
    noise   Gaussian with mean and standard deviation of each slot and dimension, drawn from the item's id alone
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kava.data.example import stable_hash
from kava.errors import DataError


def noise(latents: Tensor, ids: Sequence[str]) -> Tensor:
    generators = [torch.Generator().manual_seed(stable_hash(example_id, "noise")) for example_id in ids]
    draws = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
    return latents.mean(0) + latents.std(0) * torch.stack(draws)


# by name: (latents [n, M, E] of the whole set, ids of its items) -> [n, M, E]
ABLATIONS: dict[str, Callable[[Tensor, Sequence[str]], Tensor]] = {
    "zero": lambda latents, ids: torch.zeros_like(latents),
    "mean": lambda latents, ids: latents.mean(0).expand_as(latents),
    "swap": lambda latents, ids: latents.roll(-1, 0),
    "noise": noise,
}


def zeroed(latents: Tensor, slots: Sequence[Sequence[int]]) -> Tensor:
    """The latents [B, M, E] with zeros at these slots of each row."""
    latents = latents.clone()
    for row, places in zip(latents, slots, strict=True):
        row[list(places)] = 0
    return latents


def ablated(name: str, latents: Tensor, ids: Sequence[str]) -> Tensor:
    """The latents in place of `latents` [n, M, E]; all but zeros are made of several items."""
    if name != "zero" and len(ids) < 2:
        message = f"--ablate {name} needs two items or more, only {len(ids)} fits into the model"
        raise DataError(message, "take shorter questions, or ablate zero")
    return ABLATIONS[name](latents, ids)
