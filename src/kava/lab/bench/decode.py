"""`kava bench decode`: greedy decoding of one model in three ways, checked to give the same text, then timed.

naive     the whole sequence is read again for every token
cached    our engine with a KV cache, as explicit chains of thought are written
library   `generate` of transformers, with its own cache and attention
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kava.backbone.artifact import CARD
from kava.backbone.load import build_model
from kava.backbone.model import LatentModel
from kava.config import load_recipe
from kava.data.encode import Encoder
from kava.errors import ConfigError
from kava.infer.generate import generate
from kava.infer.student import pick_device
from kava.lab.bench.reference import library_generate, library_twin
from kava.lab.bench.timing import Times, hardware, ratio, take_turns

PROMPTS = (
    "Natalia sold 48 clips in April, and then she sold half as many clips in May. How many clips did she sell in all?",
    "The capital of France is",
    "A train leaves at nine in the morning and travels 60 miles an hour. After three hours it has gone",
    "List the first ten prime numbers:",
)
Rows = list[list[int]]  # the tokens generated after each prompt, eos included
Way = Callable[[Tensor, Tensor], Rows]
Case = tuple[str, int]  # a way and a batch size


@dataclass
class DecoderCalls:
    """Calls of a decoder, and tokens read in them (padding included)."""

    passes: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class DecodeSetup:
    """Three ways to decode, the decoder that each of them calls, and the prompts: (ids, mask) by batch size."""

    ways: Mapping[str, Way]
    decoders: Mapping[str, Any]
    batches: Mapping[int, list[tuple[Tensor, Tensor]]]
    lengths: list[int]


def open_model(name: str, dtype: str, device: str) -> tuple[LatentModel, Any]:
    """A plain model, loaded as training loads it."""
    if (Path(name) / CARD).is_file():
        raise ConfigError(f"{name} is a student's folder, not a plain model", f"kava bench latent --checkpoint {name}")
    settings = [f"model.name={name}", f"model.dtype={dtype}", "lora.enabled=false"]
    model, tokenizer = build_model(load_recipe("embedded", settings))
    return model.to(pick_device(device)).eval(), tokenizer


def prepare(model: LatentModel, tokenizer: Any, prompts: Sequence[str], limit: int) -> DecodeSetup:
    """The prompts one at a time and, if there are several, all at once; at most `limit` new tokens each."""
    encoder = Encoder(tokenizer)
    eos, twin = encoder.eos, library_twin(model)
    ways: dict[str, Way] = {
        "naive": lambda ids, mask: _naive(model, ids, mask, eos, limit),
        "cached": lambda ids, mask: _cached(model, ids, mask, eos, limit),
        "library": lambda ids, mask: library_generate(twin, ids, mask, eos, limit),
    }
    own, other = model.decoder, getattr(twin, model.family.decoder)
    rows = _encode(encoder, prompts, limit, model.max_positions)
    batches = {size: _batches(rows, size, eos, model.device) for size in dict.fromkeys((1, len(rows)))}
    return DecodeSetup(ways, {"naive": own, "cached": own, "library": other}, batches, [len(row) for row in rows])


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


def bench(
    name: str,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 50,
    dtype: str = "float32",
    device: str = "auto",
    warmup: int = 2,
    repeats: int = 5,
    progress: bool = False,
) -> dict[str, Any]:
    """The result as plain data; `differences` says where the ways give different text, and then nothing is timed.

    `measured` has a row per way and batch size (one prompt at a time, and all at once if there are several).
    """
    model, tokenizer = open_model(name, dtype, device)
    setup = prepare(model, tokenizer, prompts, max_new_tokens)
    outputs, calls = check(setup)
    result: dict[str, Any] = {
        "model": name,
        "family": model.family.name,
        "parameters": sum(weight.numel() for weight in model.causal_lm.parameters()),
        "dtype": str(next(model.causal_lm.parameters()).dtype).removeprefix("torch."),
        "hardware": hardware(model.device),
        "prompts": list(prompts),
        "prompt_tokens": setup.lengths,
        "max_new_tokens": max_new_tokens,
        "warmup": warmup,
        "repeats": repeats,
        "differences": differences(outputs, tokenizer),
    }
    result["equal"] = not result["differences"]
    if result["equal"]:
        rows = outputs["naive", 1]
        result |= {"texts": tokenizer.batch_decode(rows), "new_tokens": sum(map(len, rows))}
        steps = {(way, size): _run(setup.ways[way], setup.batches[size]) for way, size in outputs}
        times = take_turns(steps, repeats, model.device, warmup, progress)
        result["measured"] = [_row(case, times, calls[case], result["new_tokens"]) for case in outputs]
    return result


def check(setup: DecodeSetup) -> tuple[dict[Case, Rows], dict[Case, DecoderCalls]]:
    """The tokens that every way gives at every batch size, and the decoder calls it took."""
    outputs, calls = {}, {}
    for size, batches in setup.batches.items():
        for way, decode in setup.ways.items():
            with _counted(setup.decoders[way]) as calls[way, size]:
                outputs[way, size] = _run(decode, batches)()
    return outputs, calls


def differences(outputs: Mapping[Case, Rows], tokenizer: Any) -> list[str]:
    """A line for each way and batch size that differs from the naive text: where, and in which tokens."""
    lines = []
    for (way, size), rows in outputs.items():
        for number, (row, naive) in enumerate(zip(rows, outputs["naive", 1], strict=True), 1):
            if row != naive:
                pairs = enumerate(zip(row, naive, strict=False))
                at = next((i for i, (token, wanted) in pairs if token != wanted), min(len(row), len(naive)))
                text, wanted_text = (ascii(tokenizer.decode(tokens[at : at + 1])) for tokens in (row, naive))
                lines.append(
                    f"{way}, batch {size}: prompt {number} parts at token {at + 1}: {text} instead of {wanted_text}"
                )
                break
    return lines


def _encode(encoder: Encoder, prompts: Sequence[str], limit: int, most: int | None) -> Rows:
    """The prompts' ids without a template, after the tokenizer's bos if it has one."""
    texts = encoder.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    rows = [encoder.bos + list(ids) for ids in texts]
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


def _batches(rows: Rows, size: int, pad: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """(ids, mask) of `size` prompts each, padded on the right."""
    batches = []
    for start in range(0, len(rows), size):
        part = [torch.tensor(row) for row in rows[start : start + size]]
        ids = pad_sequence(part, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in part], batch_first=True)
        batches.append((ids.to(device), mask.to(device)))
    return batches


def _run(way: Way, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], Rows]:
    return lambda: [row for ids, mask in batches for row in way(ids, mask)]


def _row(case: Case, times: Mapping[Case, Times], calls: DecoderCalls, new_tokens: int) -> dict[str, Any]:
    way, size = case
    facts = times[case].facts()
    return {
        "way": way,
        "batch_size": size,
        **facts,
        "tokens_per_second": new_tokens / facts["seconds"],
        "forward_passes": calls.passes,
        "tokens_read": calls.tokens,
        "speed_up": ratio(times["naive", size].wall, times[case].wall),
    }


@contextmanager
def _counted(decoder: Any) -> Iterator[DecoderCalls]:
    """Counts the calls of a decoder inside the block."""
    calls = DecoderCalls()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = next(
            part for part in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if part is not None
        )
        calls.passes += 1
        calls.tokens += inputs.shape[0] * inputs.shape[1]

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
