"""`kava bench answer`: answers on our engine beside the library's model and cache, called for the same columns in each pass,
and one further token beside the library's `generate`; checked to give the same tokens, then timed.

question   [Q, <bot>, slots], T - 1 rounds over the M latents, [latents, <eot>, cue], then token by token
token      what a token of a longer text costs: (time of a long text - time of a short one) / tokens between them
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kava.backbone.fold import folded
from kava.backbone.masks import positions
from kava.backbone.model import LatentModel
from kava.config import LatentConfig
from kava.data.collate import Collator
from kava.errors import ConfigError
from kava.infer.generate import generate
from kava.infer.student import Student, pick_device
from kava.lab.bench.reference import ModelSizes, library_generate, library_twin
from kava.lab.bench.timing import Times, hardware, ratio, take_turns
from kava.progress import progress as progress_of

NO_TOKEN = -1  # no text ends before its limit: both sides make the same calls
SHORT = 8  # tokens of the shorter text
WAYS = ("kava", "library")
Rows = list[list[int]]
Case = tuple[str, str, int]  # what, way, batch size


@dataclass(frozen=True)
class AnswerBenchSizes(ModelSizes):
    """What is timed; latents: M, rounds: T."""

    latents: int
    rounds: int


@dataclass(frozen=True)
class Answering:
    """A model that answers, the ids of its questions, and the cue."""

    model: LatentModel
    questions: Rows
    cue: list[int]
    pad: int = 0

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """ids and mask [size, Q]; questions are repeated where there are too few."""
        rows = [self.questions[i % len(self.questions)] for i in range(size)]
        ids, mask = Collator(self.pad).pad(rows)
        return ids.to(self.model.device), mask.to(self.model.device)


def random_subject(sizes: AnswerBenchSizes, device: str) -> Answering:
    model = sizes.model(LatentConfig(num_tokens=sizes.latents, num_iterations=sizes.rounds))
    examples = sizes.examples(sizes.batch_size, 1)
    return Answering(model.to(pick_device(device)).eval(), [row.question for row in examples], examples[0].cue)


def student_subject(student: Student, questions: Sequence[str]) -> Answering:
    """A student with its adapters folded in, as it answers."""
    model = folded(student.model.eval())
    return Answering(model, student.encode(questions), student.lead("latent"), student.tokenizer.pad_token_id)


def bench(
    subject: Answering, batch_sizes: Sequence[int], tokens: int, further: int, repeats: int, progress: bool
) -> dict[str, Any]:
    """The result as plain data; `differences` says where the tokens differ, and then nothing is timed."""
    model = subject.model
    check_positions(subject, tokens, further)
    runs = runs_of(subject, batch_sizes, tokens, further)
    with progress_of("tokens compared", show=progress):
        lines = differences(runs)
    result: dict[str, Any] = {
        "hardware": hardware(model.device),
        "family": model.family.name,
        "parameters": sum(weight.numel() for weight in model.causal_lm.parameters()),
        "dtype": str(model.causal_lm.dtype).removeprefix("torch."),
        "num_tokens": model.latent.num_tokens,
        "rounds": model.rounds,
        "new_tokens": tokens,
        "further_tokens": further,
        "repeats": repeats,
        "differences": lines,
        "equal": not lines,
    }
    if lines:
        return result
    times = take_turns(runs, repeats, model.device, progress=progress)
    result["measured"] = [row for size in dict.fromkeys(batch_sizes) for row in _measured(times, size, further)]
    return result


def check_positions(subject: Answering, tokens: int, further: int) -> None:
    """Refuses texts that do not fit into the model."""
    model, longest = subject.model, max(map(len, subject.questions))
    most, thought = model.max_positions, 2 + model.latent.num_tokens + len(subject.cue)
    if most is not None and longest + max(thought + tokens, SHORT + further) > most:
        message = f"a question of {longest} tokens and what is generated do not fit into the model's {most} positions"
        raise ConfigError(message, "lower --new_tokens and --further_tokens")


def _measured(times: dict[Case, Times], size: int, further: int) -> list[dict[str, Any]]:
    """Two rows of a batch size: the whole question, and one further token of each of its rows."""
    whole = {way: times["question", way, size] for way in WAYS}
    token = {way: _per_token(times["long", way, size], times["short", way, size], further) for way in WAYS}
    return [
        {
            "what": what,
            "batch_size": size,
            **{way: pair[way].facts() for way in WAYS},
            "ratio": ratio(pair["kava"].wall, pair["library"].wall),
            "cpu_ratio": ratio(pair["kava"].cpu, pair["library"].cpu),
        }
        for what, pair in (("question", whole), ("token", token))
    ]


def _per_token(long: Times, short: Times, further: int) -> Times:
    """The time of each token that the long text has and the short one has not, by rounds."""
    pairs = ((long.wall, short.wall), (long.cpu, short.cpu))
    return Times(*([(a - b) / further for a, b in zip(*pair, strict=True)] for pair in pairs))


def runs_of(
    subject: Answering, batch_sizes: Sequence[int], tokens: int, further: int
) -> dict[Case, Callable[[], Rows]]:
    """What is run at each batch size: the whole question, a short text and a long one, each in both ways."""
    model, twin = subject.model, library_twin(subject.model)
    runs: dict[Case, Callable[[], Rows]] = {}
    for size in dict.fromkeys(batch_sizes):
        ids, mask = subject.batch(size)
        runs["question", "kava", size] = partial(_own, model, ids, mask, subject.cue, tokens, "latent")
        runs["question", "library", size] = partial(library_answer, model, twin, ids, mask, subject.cue, tokens)
        for length, limit in (("short", SHORT), ("long", SHORT + further)):
            runs[length, "kava", size] = partial(_own, model, ids, mask, [], limit, "cot")
            runs[length, "library", size] = partial(library_generate, twin, ids, mask, NO_TOKEN, limit)
    return runs


def _own(model: LatentModel, ids: Tensor, mask: Tensor, cue: list[int], limit: int, mode: str) -> Rows:
    return [row.tokens for row in generate(model, ids, mask, cue, NO_TOKEN, limit, mode)]


@torch.inference_mode()
def library_answer(model: LatentModel, twin: Any, ids: Tensor, mask: Tensor, cue: list[int], limit: int) -> Rows:
    """The answers as the library's model and cache give them: of ours only the projection of the latents is used."""
    decoder, cache = getattr(twin, model.family.decoder), DynamicCache()
    rows, bot = len(ids), ids.shape[1]

    def run(embeds: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        real = torch.cat([known, torch.ones_like(embeds[..., 0], dtype=torch.bool)], dim=1)
        place = positions(real)[:, known.shape[1] :]
        out = decoder(
            inputs_embeds=embeds, attention_mask=real.long(), position_ids=place, past_key_values=cache, use_cache=True
        )
        return out.last_hidden_state, real

    slots = model.slots(rows)
    real = torch.cat([mask, torch.ones_like(slots, dtype=torch.bool)], dim=1)
    embeds = model.embed(torch.cat([ids, slots], dim=1))
    first = decoder(
        inputs_embeds=embeds, attention_mask=real.long(), position_ids=positions(real), past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    known = real[:, : bot + 1]

    def think(latents: Tensor) -> Tensor:
        shorten(cache, bot + 1)
        return run(latents, known)[0]

    latents = model.think(first.last_hidden_state[:, bot:], think)
    shorten(cache, bot + 1)
    after = model.embed(torch.tensor([model.special.eot, *cue], device=ids.device).expand(rows, -1))
    hidden, known = run(torch.cat([latents, after], dim=1), known)
    tokens = [model.head(hidden[:, -1:]).argmax(-1)]
    while len(tokens) < limit:
        hidden, known = run(model.embed(tokens[-1]), known)
        tokens.append(model.head(hidden).argmax(-1))
    return torch.cat(tokens, dim=1).tolist()


def shorten(cache: Any, columns: int) -> None:
    """Keeps the first columns of a cache; its own `crop` means other things in other versions of transformers."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]


def differences(runs: dict[Case, Callable[[], Rows]]) -> list[str]:
    """A line for each kind of text and batch size in which our tokens are not the library's."""
    lines = []
    for (what, way, size), run in runs.items():
        if way == "kava":
            pairs = zip(run(), runs[what, "library", size](), strict=True)
            if wrong := [number for number, (own, other) in enumerate(pairs, 1) if own != other]:
                lines.append(
                    f"{what}, batch {size}: {len(wrong)} of {size} rows differ from the library's, first {wrong[0]}"
                )
    return lines
