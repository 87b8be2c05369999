"""Batched generation: think in latents, then decode with a full KV cache. The teacher is not used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kava.backbone.attention import KV
from kava.backbone.kv import Pass, right_aligned
from kava.backbone.masks import causal_mask, pick, positions, previous
from kava.backbone.model import LatentModel
from kava.infer.checks import MODES
from kava.infer.sampling import Sampling


@dataclass
class Generation:
    """tokens without eos; forward_passes = 1 + T + generated tokens with eos (the method's rule); executed = model calls
    made, one fewer because the last round and the cue share a call; log_probability: of a drawn answer with its eos, at
    temperature 1."""

    tokens: list[int] = field(default_factory=list)
    forward_passes: int = 0
    executed: int = 0
    truncated: bool = True
    log_probability: float | None = None


@dataclass(frozen=True)
class DecodingState:
    """The last hidden state [B, E] of each row, the KV cache before it, and the cache's mask."""

    hidden: Tensor
    prefix: KV
    known: Tensor

    def of(self, rows: list[int]) -> "DecodingState":
        """The state of some rows, in this order; a row may be named several times."""
        if rows == list(range(len(self.hidden))):
            return self
        index = torch.tensor(rows, device=self.hidden.device)
        return DecodingState(self.hidden[index], [(k[index], v[index]) for k, v in self.prefix], self.known[index])

    def trimmed(self) -> "DecodingState":
        """The same without the first columns, as far as they are padding in every row."""
        first = int(self.known.any(0).int().argmax())
        if first == 0:
            return self
        prefix = [(k[:, :, first:], v[:, :, first:]) for k, v in self.prefix]
        return DecodingState(self.hidden, prefix, self.known[:, first:])

    @classmethod
    def stacked(cls, states: Sequence["DecodingState"]) -> "DecodingState":
        """The rows of all states, one behind the other: each row's real columns at the end, padding before them."""
        width = max(int(state.known.sum(1).max()) for state in states)
        parts = [right_aligned(state.prefix, state.known, width) for state in states]
        layers = zip(*(prefix for prefix, _ in parts), strict=True)
        prefix = [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
        return cls(torch.cat([state.hidden for state in states]), prefix, torch.cat([known for _, known in parts]))


@torch.inference_mode()
def generate(
    model: LatentModel,
    question: Tensor,
    mask: Tensor,
    lead: list[int],
    eos: int,
    max_new_tokens: int,
    mode: str = "latent",
    sampling: Sampling | None = None,
    latents: Tensor | None = None,
    rows: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Generation]:
    """One Generation per row of question [B, Q] (any padding side). `lead` is given before the first generated token.

    latent: [Q, <bot>, latents, <eot>, lead]; direct: the same without latents; cot: [Q, lead]. `latents` [B, M, E]
    replace those the model would think; the counters still include the passes of thinking. `rows`: one Generation for
    each of these rows, which may repeat: a question is read and thought about once, however often it is answered.
    `numbers`: which sample of its question each of them is (default: the first), for seeded draws.
    """
    sampling = sampling or Sampling()
    rows = list(range(len(question)) if rows is None else rows)
    draws = None
    if sampling.temperature > 0:
        ids = [question[row][mask[row]].tolist() for row in rows]
        draws = sampling.draws(ids, numbers or [0] * len(rows), max_new_tokens)
    state = prefill(model, question, mask, lead, mode, latents).of(rows)
    rounds = model.rounds if mode == "latent" else 0
    out = [Generation() for _ in state.hidden]
    alive = list(range(len(out)))  # the place in `out` of each row of the state
    for step in range(max_new_tokens):
        logits = model.head(state.hidden)
        token = sampling.choose(logits, None if draws is None else draws[alive, step])
        values = token.tolist()
        if draws is not None:
            _add_log_probabilities([out[row] for row in alive], logits, token)
        for row, value in zip(alive, values, strict=True):
            generation = out[row]
            generation.forward_passes, generation.executed = 1 + rounds + step + 1, 1 + rounds + step
            generation.truncated = value != eos
            if value != eos:
                generation.tokens.append(value)
        going = [i for i, value in enumerate(values) if value != eos]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(values):
            alive, token, state = [alive[i] for i in going], token[going], state.of(going)
        state = extend(model, model.embed(token[:, None]), state.prefix, state.known)
    return out


def _add_log_probabilities(generations: Sequence[Generation], logits: Tensor, tokens: Tensor) -> None:
    """Adds the log-probability of each row's new token."""
    known = torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None]).squeeze(-1).tolist()
    for generation, value in zip(generations, known, strict=True):
        generation.log_probability = (generation.log_probability or 0.0) + value


@torch.inference_mode()
def think(model: LatentModel, question: Tensor, mask: Tensor) -> Tensor:
    """The latents [B, M, E] as `generate` takes them: input embeddings of their last pass."""
    return think_with_prefix(model, question, mask)[0]


def prefill(
    model: LatentModel,
    question: Tensor,
    mask: Tensor,
    lead: list[int],
    mode: str,
    latents: Tensor | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> DecodingState:
    """The state before the first generated token. `latents` replace those thought; `change` is applied to the latents."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}, known: {MODES}")
    if not (latents is None and change is None) and not (mode == "latent" and model.feeds_back):
        raise ValueError("there are no latents to replace")
    rows = len(question)
    if mode == "cot":
        return _read(model, question, mask, torch.tensor(lead, device=model.device).long().expand(rows, -1))
    after = torch.tensor([model.special.eot, *lead], device=model.device).expand(rows, -1)
    if mode == "direct" or not model.feeds_back:
        slots = model.slots(rows)[:, :1] if mode == "direct" else model.slots(rows)
        return _read(model, question, mask, torch.cat([slots, after], 1))
    latents, prefix, known = think_with_prefix(model, question, mask, latents)
    if change is not None:
        latents = change(latents)
    return extend(model, torch.cat([latents, model.embed(after)], dim=1), prefix, known)


def _read(model: LatentModel, question: Tensor, mask: Tensor, after: Tensor) -> DecodingState:
    """One pass over [Q, after]."""
    ids = torch.cat([question, after], dim=1)
    known = torch.cat([mask, torch.ones_like(after, dtype=torch.bool)], dim=1)
    out = model.run(model.embed(ids), positions(known), causal_mask(known))
    last = previous(torch.nn.functional.pad(known, (0, 1)))[:, -1]
    return DecodingState(pick(out.hidden, last), out.kv(slice(None)), known)


def think_with_prefix(
    model: LatentModel,
    question: Tensor,
    mask: Tensor,
    latents: Tensor | None = None,
    watch: Callable[[Tensor | None, Tensor], None] = lambda embeds, hidden: None,
) -> tuple[Tensor, KV, Tensor]:
    """Pass 0 and all rounds but the last: the latents [B, M, E] (or those given) as input embeddings of their last pass,
    and the KV of [Q, <bot>] with its mask.

    `watch` is called after every pass: (None, hidden [B, 1 + M, E] at <bot> and the slots), then for each round its inputs
    and its hidden states.
    """
    slots = model.slots(len(question))
    ids = torch.cat([question, slots], dim=1)
    real = torch.cat([mask, torch.ones_like(slots, dtype=torch.bool)], dim=1)
    first = model.run(model.embed(ids), positions(real), causal_mask(real))
    bot = question.shape[1]
    prefix, known = first.kv(slice(0, bot + 1)), real[:, : bot + 1]
    watch(None, first.hidden[:, bot:])

    def run(embeds: Tensor) -> Tensor:
        hidden = run_after(model, embeds, prefix, known).hidden
        watch(embeds, hidden)
        return hidden

    if latents is None:
        latents = model.think(first.hidden[:, bot:], run)
    return latents.to(first.hidden), prefix, known


def extend(model: LatentModel, embeds: Tensor, prefix: KV, known: Tensor) -> DecodingState:
    """The state after embeds [B, T, E]."""
    out = run_after(model, embeds, prefix, known, joined=True)
    assert out.joined is not None
    real = torch.ones_like(embeds[..., 0], dtype=torch.bool)
    return DecodingState(out.hidden[:, -1], out.joined, torch.cat([known, real], 1))


def run_after(model: LatentModel, embeds: Tensor, prefix: KV, known: Tensor, joined: bool = False) -> Pass:
    """One pass over embeds [B, T, E], none of them padding, with the KV prefix before them."""
    real, before = torch.ones_like(embeds[..., 0], dtype=torch.bool), known.sum(1)
    if embeds.shape[1] == 1:  # a token sees all that is real, and its place is their number
        return model.run(embeds, before[:, None], torch.cat([known, real], 1)[:, None, None], prefix, joined=joined)
    return model.run(embeds, positions(real, before), causal_mask(real, known), prefix, joined=joined)
