"""Latents by Jacobi iteration (PCCoT): all M slots in parallel, T rounds.

    pass 0   run [Q, <bot>, <latent> x M];  e_1 = prj(h(<bot>)),  e_i = prj(h(latent i-1))
    t = 1..T run the M embeddings, causal inside the block; then e_1 stays, e_i = prj(h_{i-1})          [known]

The update after round T is not used, so the inputs of the last round are the result of T - 1 rounds. After t rounds
the first t latents are exact; T >= M equals sequential decoding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]  # input embeddings [B, M, E] -> hidden states [B, M, E]


def start(hidden: Tensor, project: Run) -> Tensor:
    """e_1..e_M from the hidden states at <bot>, latent 1 .. latent M; hidden [B, 1 + M, E]."""
    return project(hidden[:, :-1])


def iterate(embeds: Tensor, run: Run, project: Run, rounds: int) -> Tensor:
    """The embeddings after `rounds` rounds of run and update; embeds [B, M, E]."""
    for _ in range(rounds):
        hidden = run(embeds)
        embeds = torch.cat([embeds[:, :1], project(hidden[:, :-1])], dim=1)
    return embeds
