"""The latents' keys and values beside those of the chain of thought: where is the diagonal?

The chain is read by the student's teacher mode, as in training; keys before or after rotary as the recipe says.

    cos[l, i, n] = mean_h cos(latent i, chain token n) in layer l, of keys and of values
    by_step[i, s] = max over the tokens n of step s of the mean over layers, keys and values

The step on the diagonal of latent i is step i where the recipe keeps step results in their order (rkv.method steps), else
the step at the same place of the chain, floor(i n / M). Chance: the same latents in every other order.             [ours]
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kava.backbone.kv import unrotate
from kava.backbone.masks import positions
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.characters import token_spans
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import STEP_SEPARATOR, Encoder
from kava.data.example import Example
from kava.lens.answer import Said, Thought
from kava.lens.records import ChainMatch, DiagonalSummary

DRAWS = 10_000


@torch.inference_mode()
def match_chains(
    model: LatentModel,
    tokenizer: Any,
    encoder: Encoder,
    recipe: Recipe,
    examples: Sequence[Example],
    thought: Thought,
    said: Said,
) -> list[ChainMatch | None]:
    """A match per example; None where its chain of thought is empty."""
    places = [b for b, example in enumerate(examples) if encoder.steps(example)]
    rows = encoder.encode_batch([examples[b] for b in places])
    matches: list[ChainMatch | None] = [None] * len(examples)
    if not any(row.cot for row in rows):
        return matches
    batch = {key: part.to(model.device) for key, part in Collator(tokenizer.pad_token_id)(rows).items()}
    teacher, count = teacher_forced_pass(model, batch), thought.latents.shape[1]
    own_keys, own_values = ([part[places, :, :count] for part in parts] for parts in (said.out.keys, said.out.values))
    keys, values = teacher.keys("cot"), teacher.values("cot")
    if recipe.rkv.rotary == "before" and model.family.rotary:
        column = positions(batch["cot_mask"], batch["question_mask"].sum(1))
        keys = [unrotate(key, model.decoder, column) for key in keys]
        column = positions(said.real, thought.known.sum(1))[places, :count]
        own_keys = [unrotate(key, model.decoder, column) for key in own_keys]
    of_keys, of_values = cosines(own_keys, keys), cosines(own_values, values)  # [B, L, M, N]
    for b, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not (length := len(row.cot)):
            continue
        steps = list(encoder.steps(examples[place]))
        offsets = token_spans(tokenizer, [STEP_SEPARATOR.join(steps)])[0][1]
        parts = of_keys[b, :, :, :length], of_values[b, :, :, :length]
        texts = [tokenizer.decode([token]) for token in row.cot]
        in_order = recipe.rkv.method == "steps"
        matches[place] = match(*parts, texts, steps, steps_of_tokens(offsets, steps), in_order)
    return matches


def cosines(latents: Sequence[Tensor], chain: Sequence[Tensor]) -> Tensor:
    """[B, L, M, N] of layers' entries [B, H, M, D] and [B, H, N, D]: of each head, mean over heads."""
    by_layer = [
        (F.normalize(own.float(), dim=-1) @ F.normalize(other.float(), dim=-1).transpose(2, 3)).mean(1)
        for own, other in zip(latents, chain, strict=True)
    ]
    return torch.stack(by_layer, 1)


def steps_of_tokens(offsets: Sequence[tuple[int, int]], steps: Sequence[str]) -> list[int]:
    """The step that each token ends in; offsets are characters of the steps joined by one space."""
    ends, end = [], 0
    for step in steps:
        end += len(step) + len(STEP_SEPARATOR)
        ends.append(end)
    return [next(s for s, end in enumerate(ends) if stop <= end) for _, stop in offsets]


def match(
    keys: Tensor, values: Tensor, tokens: list[str], steps: list[str], step_of_token: list[int], in_order: bool
) -> ChainMatch:
    """The match of one row from its cosines [L, M, N] of keys and of values."""
    mean = ((keys + values) / 2).mean(0)  # [M, N]
    belongs = torch.tensor(step_of_token, device=mean.device)
    by_step = torch.stack(
        [mean.masked_fill(belongs != step, -2.0).amax(1) for step in range(len(steps))], 1
    )  # a step without tokens of its own stays below every cosine
    best = by_step.argmax(1).tolist()
    count, width = len(best), len(steps)
    diagonal = [(i if i < width else None) if in_order else i * width // count for i in range(count)]
    on, chance = share_on(best, diagonal)
    return ChainMatch(
        tokens=tokens,
        steps=steps,
        step_of_token=step_of_token,
        keys=keys.tolist(),
        values=values.tolist(),
        by_step=by_step.tolist(),
        best_token=mean.argmax(1).tolist(),
        best_step=best,
        diagonal=diagonal,
        on_diagonal=on,
        chance=chance,
    )


def share_on(best: Sequence[int], diagonal: Sequence[int | None]) -> tuple[float | None, float | None]:
    """The share of latents whose best step is on the diagonal, and its mean over all orders of `best`."""
    places = [step for step in diagonal if step is not None]
    if not places:
        return None, None
    hits = sum(own == step for own, step in zip(best, diagonal, strict=True))
    expected = sum(best.count(step) for step in places) / len(best)
    return hits / len(places), expected / len(places)


def diagonal_of(matches: Sequence[ChainMatch | None]) -> DiagonalSummary | None:
    """The questions whose chain has two steps or more: with one step everything is on the diagonal."""
    import numpy as np

    chains = [one for one in matches if one is not None and len(one.steps) > 1 and len(one.best_step) > 1]
    if not chains:
        return None
    total = sum(step is not None for one in chains for step in one.diagonal)
    hits = sum(_hits(np.array(one.best_step), one) for one in chains)
    expected = sum((one.chance or 0.0) * sum(step is not None for step in one.diagonal) for one in chains)
    random, drawn = np.random.default_rng(0), np.zeros(DRAWS)
    for one in chains:
        orders = random.permuted(np.tile(np.array(one.best_step), (DRAWS, 1)), axis=1)
        drawn += _hits(orders, one)
    as_diagonal = int((drawn >= hits).sum())
    return DiagonalSummary(total, float(hits) / total, expected / total, (as_diagonal + 1) / (DRAWS + 1))


def _hits(best: Any, chain: ChainMatch) -> Any:
    """How many of best [..., M] are on the diagonal."""
    import numpy as np

    return (best == np.array([-1 if step is None else step for step in chain.diagonal])).sum(-1)
