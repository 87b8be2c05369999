"""Latents decoded sequentially (CODI, Coconut); the reference for Jacobi iteration."""

import torch
from torch import Tensor

from kava.latents.jacobi import Run


def unroll(first: Tensor, run: Run, project: Run, num_latents: int) -> Tensor:
    """e_1 = prj(h(<bot>)), e_i = prj(h(e_{i-1} | e_1..e_{i-2})): the input embeddings [B, M, E] of all latents.

    `run` sees e_1..e_i each time and returns their hidden states; `first` [B, 1, E].
    """
    embeds = first
    for _ in range(num_latents - 1):
        hidden = run(embeds)
        embeds = torch.cat([embeds, project(hidden[:, -1:])], dim=1)
    return embeds[:, :num_latents]
