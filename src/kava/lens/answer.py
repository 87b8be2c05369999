"""The answer's side: log-probabilities under the latents as thought and under others, and the attention it pays them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kava.backbone.attention import KV, capped_weights
from kava.backbone.kv import Pass
from kava.backbone.masks import causal_mask, positions, within_window
from kava.backbone.model import LatentModel
from kava.lens.records import AnswerAttention
from kava.lens.rounds import name


@dataclass(frozen=True)
class Thought:
    """Questions after their rounds: `latents` [B, M, E], the KV of [Q, <bot>] and its mask [B, P]."""

    latents: Tensor
    prefix: KV
    known: Tensor


@dataclass(frozen=True)
class Said:
    """The last pass over [latents, <eot>, lead, answer]: `out` and its mask; of each row `logprob` and whether each of its
    tokens was the likeliest."""

    out: Pass
    real: Tensor
    logprob: list[float]
    likeliest: list[bool]


@torch.inference_mode()
def say(model: LatentModel, thought: Thought, lead: list[int], answers: Sequence[list[int]]) -> Said:
    """Teacher forcing of one answer per question (ids, with eos where it has one) after <eot> and the lead."""
    latents = thought.latents.to(thought.prefix[0][0])
    width = latents.shape[1]
    rows = [torch.tensor([model.special.eot, *lead, *ids], device=latents.device) for ids in answers]
    ids = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    real = torch.arange(width + ids.shape[1], device=ids.device) < (width + lengths)[:, None]
    embeds = torch.cat([latents, model.embed(ids)], dim=1)
    place = positions(real, thought.known.sum(1))
    out = model.run(embeds, place, causal_mask(real, thought.known), thought.prefix, joined=True)
    start = 1 + len(lead)  # the first token of the answer
    logits = model.head(out.hidden[:, width + start - 1 : -1]).float()
    wanted = ids[:, start:, None]
    chosen = torch.log_softmax(logits, -1).gather(2, wanted)[..., 0]
    answer = real[:, width + start :]
    best = (logits.argmax(-1) == wanted[..., 0]) | ~answer
    return Said(out, real, (chosen * answer).sum(1).tolist(), best.all(1).tolist())


@torch.inference_mode()
def attention_of(
    model: LatentModel, tokenizer: Any, thought: Thought, said: Said, lead: list[int], answers: Sequence[list[int]]
) -> list[AnswerAttention]:
    """Attention weights of <eot>, lead and answer (but its last token, which predicts nothing) on the latents, computed
    from the queries and keys that the pass recorded, under the mask, window and cap of each layer."""
    assert said.out.joined is not None
    whole, count = causal_mask(said.real, thought.known), thought.latents.shape[1]
    begin, cue = thought.known.shape[1], len(lead)
    question = thought.known.clone()
    question[:, -1] = False  # <bot>
    latent, share = [], []  # by layer: [B, heads, T, M], [B, heads, T]
    for layer, (query, (key, _)) in enumerate(zip(said.out.queries, said.out.joined, strict=True)):
        window = model.windows[layer]
        mask = whole if window is None else within_window(whole, window)
        weights = capped_weights(query[:, :, count:], key, mask[:, :, count:], model.scale, model.cap).float()
        latent.append(weights[..., begin : begin + count])
        share.append((weights[..., :begin] * question[:, None, None]).sum(-1))
    by_layer, shares = torch.stack(latent, 1), torch.stack(share, 1)  # [B, L, heads, T, M], [B, L, heads, T]
    views = []
    for b, ids in enumerate(answers):
        inputs = [model.special.eot, *lead, *ids[:-1]]
        rows = by_layer[b, :, :, : len(inputs)]
        views.append(
            AnswerAttention(
                tokens=[name(tokenizer, token) for token in inputs],
                cue=cue,
                mean=rows.mean(1).tolist(),
                most=rows.amax(1).tolist(),
                heads=rows[:, :, cue:].mean(2).tolist(),
                question=shares[b, :, :, cue : len(inputs)].mean((1, 2)).tolist(),
            )
        )
    return views
