"""`kava bench decode`: greedy decoding of one model in three ways, checked to give the same text, then timed.

naive     the whole sequence is read again for every token
cached    our engine with a KV cache, as explicit chains of thought are written
library   `generate` of transformers, with its own cache and attention
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.backbone.card import CARD
from kava.backbone.load import build_model
from kava.backbone.model import LatentModel
from kava.characters import token_ids
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoder
from kava.errors import ConfigError
from kava.infer.generate import generate
from kava.infer.student import pick_device
from kava.lab.bench.reference import library_generate, library_twin
from kava.lab.bench.timing import hardware, ratio, take_turns
from kava.progress import progress as progress_of

PROMPTS = (
    "Natalia sold 48 clips in April, and then she sold half as many clips in May. How many clips did she sell in all?",
    "The capital of France is",
    "A train leaves at nine in the morning and travels 60 miles an hour. After three hours it has gone",
    "List the first ten prime numbers:",
)
Rows = list[list[int]]  # tokens of each prompt, or those generated after it, eos included
Case = tuple[str, int]  # a way and a batch size


@dataclass(frozen=True)
class Decoding:
    """One way at one batch size: `run` repeats it; the tokens it generated, and those it read in each call of the decoder
    (padding included)."""

    run: Callable[[], Rows]
    rows: Rows
    tokens_read: list[int]


def bench(
    name: str, prompts: Sequence[str], limit: int, dtype: str, device: str, warmup: int, repeats: int, progress: bool
) -> dict[str, Any]:
    """The result as plain data; `differences` says where the ways give different text, and then nothing is timed.

    At most `limit` new tokens per prompt. `measured` has a row per way and batch size.
    """
    model, tokenizer = open_model(name, dtype, device)
    encoder = Encoder(tokenizer)
    ids = encode(encoder, prompts, limit, model.max_positions)
    with progress_of("tokens compared", show=progress):
        decodings = decode_all(model, encoder.eos, ids, limit)
    lines = differences(decodings, tokenizer)
    result: dict[str, Any] = {
        "model": name,
        "family": model.family.name,
        "parameters": sum(weight.numel() for weight in model.causal_lm.parameters()),
        "dtype": str(model.causal_lm.dtype).removeprefix("torch."),
        "hardware": hardware(model.device),
        "prompts": list(prompts),
        "prompt_tokens": [len(row) for row in ids],
        "max_new_tokens": limit,
        "warmup": warmup,
        "repeats": repeats,
        "differences": lines,
        "equal": not lines,
    }
    if lines:
        return result
    runs = {case: decoding.run for case, decoding in decodings.items()}
    times = take_turns(runs, repeats, model.device, warmup, progress)
    rows = decodings["naive", 1].rows
    result |= {"texts": tokenizer.batch_decode(rows), "new_tokens": sum(map(len, rows)), "measured": []}
    for (way, size), decoding in decodings.items():
        facts = times[way, size].facts()
        result["measured"].append({
            "way": way,
            "batch_size": size,
            **facts,
            "tokens_per_second": result["new_tokens"] / facts["seconds"],
            "forward_passes": len(decoding.tokens_read),
            "tokens_read": sum(decoding.tokens_read),
            "speed_up": ratio(times["naive", size].wall, times[way, size].wall),
        })  # fmt: skip
    return result


def open_model(name: str, dtype: str, device: str) -> tuple[LatentModel, Any]:
    """A plain model, loaded as training loads it."""
    if (Path(name) / CARD).is_file():
        raise ConfigError(f"{name} is a student's folder, not a plain model", f"kava bench latent --checkpoint {name}")
    settings = [f"model.name={name}", f"model.dtype={dtype}", "lora.enabled=false"]
    model, tokenizer = build_model(load_recipe("embedded", settings))
    return model.to(pick_device(device)).eval(), tokenizer


def encode(encoder: Encoder, prompts: Sequence[str], limit: int, most: int | None) -> Rows:
    """The prompts' ids without a template, after the tokenizer's bos if it has one."""
    rows = [encoder.bos + list(ids) for ids in token_ids(encoder.tokenizer, prompts)]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ConfigError(f"the prompt {prompt!r} has no tokens", "give --prompts some text")
        if most is not None and len(row) + limit > most:
            raise ConfigError(
                f"a prompt of {len(row)} tokens and {limit} new ones do not fit into the model's {most} positions: "
                f"{prompt[:60]!r}",
                "shorten the prompt or lower --max_new_tokens",
            )
    return rows


def decode_all(model: LatentModel, eos: int, prompts: Rows, limit: int) -> dict[Case, Decoding]:
    """Every way run once with the prompts one at a time and, if there are several, all at once."""
    twin, collator = library_twin(model), Collator(eos)
    own, other = model.decoder, getattr(twin, model.family.decoder)
    ways = {
        "naive": (own, partial(_naive, model)),
        "cached": (own, partial(_cached, model)),
        "library": (other, partial(library_generate, twin)),
    }
    decodings = {}
    for size in dict.fromkeys((1, len(prompts))):
        padded = [collator.pad(prompts[start : start + size]) for start in range(0, len(prompts), size)]
        batches = [(ids.to(model.device), mask.to(model.device)) for ids, mask in padded]
        for way, (decoder, decode) in ways.items():
            tokens_read: list[int] = []
            run = partial(_run, decode, batches, eos, limit)
            with decoder.register_forward_pre_hook(partial(_note, tokens_read), with_kwargs=True):
                decodings[way, size] = Decoding(run, run(), tokens_read)
    return decodings


def _run(decode: Callable[..., Rows], batches: list[tuple[Tensor, Tensor]], eos: int, limit: int) -> Rows:
    return [row for ids, mask in batches for row in decode(ids, mask, eos, limit)]


def _note(tokens_read: list[int], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inputs = next(part for part in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if part is not None)
    tokens_read.append(inputs.shape[0] * inputs.shape[1])


def _naive(model: LatentModel, ids: Tensor, mask: Tensor, eos: int, limit: int) -> Rows:
    """Reads the whole sequence for every token; rows that have ended are left out, as in the engine."""
    rows: Rows = [[] for _ in ids]
    alive = list(range(len(rows)))
    while alive:
        written = torch.tensor([rows[i] for i in alive], dtype=torch.long, device=ids.device)
        real = torch.cat([mask[alive], torch.ones_like(written, dtype=torch.bool)], dim=1)
        generations = generate(model, torch.cat([ids[alive], written], dim=1), real, [], eos, 1, "cot")
        for i, generation in zip(alive, generations, strict=True):
            rows[i] += generation.tokens or [eos]
        alive = [i for i in alive if rows[i][-1] != eos and len(rows[i]) < limit]
    return rows


def _cached(model: LatentModel, ids: Tensor, mask: Tensor, eos: int, limit: int) -> Rows:
    generations = generate(model, ids, mask, [], eos, limit, "cot")
    return [generation.tokens + [eos] * (not generation.truncated) for generation in generations]


def differences(decodings: Mapping[Case, Decoding], tokenizer: Any) -> list[str]:
    """A line for each way and batch size that differs from the naive text: where, and in which tokens."""
    lines = []
    for (way, size), decoding in decodings.items():
        for number, (row, naive) in enumerate(zip(decoding.rows, decodings["naive", 1].rows, strict=True), 1):
            if row != naive:
                pairs = enumerate(zip(row, naive, strict=False))
                at = next((i for i, (token, wanted) in pairs if token != wanted), min(len(row), len(naive)))
                text, wanted_text = (ascii(tokenizer.decode(tokens[at : at + 1])) for tokens in (row, naive))
                lines.append(
                    f"{way}, batch {size}: prompt {number} parts at token {at + 1}: {text} instead of {wanted_text}"
                )
                break
    return lines
