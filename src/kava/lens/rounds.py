"""Nearest tokens of every latent in every round: of its hidden state through the head, of its embedding by cosine.

A decoder that scales its inputs (Gemma) scales tokens and latents alike, so cosines of both before it are right.     [ours]
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kava.backbone.model import LatentModel
from kava.lens.records import Near, ThoughtRound

Pieces = list[tuple[Tensor | None, Tensor]]  # (inputs [B, m, E] or None, hidden [B, m, E]) of each round


def rounds_of(model: LatentModel, tokenizer: Any, passes: Pieces, top: int) -> list[list[ThoughtRound]]:
    """For each question its rounds. Round 0 of `passes` has <bot> in its first column, which is no latent."""
    if model.latent.method == "sequential":
        passes = passes[1:]  # the empty slots play no part there
    table = normed_embeddings(model)
    per_round = []
    for number, (inputs, hidden) in enumerate(passes, int(model.latent.method == "sequential")):
        says = _near(tokenizer, torch.softmax(model.head(hidden if number else hidden[:, 1:]).float(), -1), top)
        reads = None if inputs is None else _near(tokenizer, F.normalize(inputs.float(), dim=-1) @ table.T, top)
        per_round.append((number, says, reads))
    count = len(passes[0][1])
    return [
        [ThoughtRound(n, says[b], None if reads is None else reads[b]) for n, says, reads in per_round]
        for b in range(count)
    ]


def normed_embeddings(model: LatentModel) -> Tensor:
    """Every row of the embedding matrix at length 1, [V, E]; trained rows of special tokens are in it."""
    ids = torch.arange(model.causal_lm.get_input_embeddings().weight.shape[0], device=model.device)
    return F.normalize(model.embed(ids).float(), dim=-1)


def _near(tokenizer: Any, scores: Tensor, top: int) -> list[list[list[Near]]]:
    """The `top` tokens of scores [B, m, V], best first, equal ones by their id; many models have rows without a token."""
    values, ids = scores[..., : len(tokenizer)].sort(dim=-1, descending=True, stable=True)
    rows = zip(values[..., :top].tolist(), ids[..., :top].tolist(), strict=True)
    return [
        [[Near(name(tokenizer, i), i, v) for v, i in zip(*slot, strict=True)] for slot in zip(*row, strict=True)]
        for row in rows
    ]


def name(tokenizer: Any, token: int) -> str:
    """The token's text; #id for a row of the matrix without a token."""
    return tokenizer.decode([token]) if token < len(tokenizer) else f"#{token}"
