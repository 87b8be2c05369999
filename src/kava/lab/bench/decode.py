"""`kava bench decode`: one model's greedy text written in three ways, checked to be one text, then timed side by side.

naive     the whole sequence is read again for every token
cached    our engine: keys and values are kept, the way explicit chains of thought are written
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
Rows = list[list[int]]  # the tokens written after each prompt, eos included
Way = Callable[[Tensor, Tensor], Rows]
Case = tuple[str, int]  # a way and a batch size


@dataclass
class Count:
    """What a decoder was called for: passes, and tokens read in them (padding included)."""

    passes: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Ready:
    """Three ways to write, the decoder that each of them calls, and the prompts: (ids, mask) by batch size."""

    ways: Mapping[str, Way]
    decoders: Mapping[str, Any]
    batches: Mapping[int, list[tuple[Tensor, Tensor]]]
    lengths: list[int]


def open_model(name: str, dtype: str, device: str) -> tuple[LatentModel, Any]:
    """A plain model, loaded as training loads it."""
    if (Path(name) / CARD).is_file():
        raise ConfigError(f"{name} is a student's folder, not a plain model", f"kava bench latent --checkpoint {name}")
    where = pick_device(device)
    settings = [f"model.name={name}", f"model.dtype={dtype}", "lora.enabled=false"]
    model, tokenizer = build_model(load_recipe("embedded", settings))
    return model.to(where).eval(), tokenizer


def prepare(model: LatentModel, tokenizer: Any, prompts: Sequence[str], limit: int) -> Ready:
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
    return Ready(ways, {"naive": own, "cached": own, "library": other}, batches, [len(row) for row in rows])


def _naive(model: LatentModel, ids: Tensor, mask: Tensor, eos: int, limit: int) -> Rows:
    """Everything again for every token; a row that has ended is read no more, as in the engine."""
    rows: Rows = [[] for _ in ids]
    alive = list(range(len(rows)))
    while alive:
        written = torch.tensor([rows[i] for i in alive], dtype=torch.long, device=ids.device)
        real = torch.cat([mask[alive], torch.ones_like(written, dtype=torch.bool)], dim=1)
        made = generate(model, torch.cat([ids[alive], written], dim=1), real, [], eos, 1, "cot")
        for i, one in zip(alive, made, strict=True):
            rows[i] += one.tokens or [eos]
        alive = [i for i in alive if rows[i][-1] != eos and len(rows[i]) < limit]
    return rows


def _cached(model: LatentModel, ids: Tensor, mask: Tensor, eos: int, limit: int) -> Rows:
    made = generate(model, ids, mask, [], eos, limit, "cot")
    return [one.tokens + [eos] * (not one.truncated) for one in made]


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
    """The result as plain data. `equal` false: the ways write different text, `differences` say where, no times.

    `measured` has a row per way and batch size (one prompt at a time, and all at once if there are several).
    """
    model, tokenizer = open_model(name, dtype, device)
    ready = prepare(model, tokenizer, prompts, max_new_tokens)
    found, counts = check(ready)
    result: dict[str, Any] = {
        "model": name,
        "family": model.family.name,
        "parameters": sum(weight.numel() for weight in model.causal_lm.parameters()),
        "dtype": str(next(model.causal_lm.parameters()).dtype).removeprefix("torch."),
        "hardware": hardware(model.device),
        "prompts": list(prompts),
        "prompt_tokens": ready.lengths,
        "max_new_tokens": max_new_tokens,
        "warmup": warmup,
        "repeats": repeats,
        "differences": differences(found, tokenizer),
    }
    result["equal"] = not result["differences"]
    if result["equal"]:
        rows = found["naive", 1]
        result |= {"texts": tokenizer.batch_decode(rows), "new_tokens": sum(map(len, rows))}
        steps = {(way, size): _run(ready.ways[way], ready.batches[size]) for way, size in found}
        times = take_turns(steps, repeats, model.device, warmup, progress)
        result["measured"] = [_row(case, times, counts[case], result["new_tokens"]) for case in found]
    return result


def check(ready: Ready) -> tuple[dict[Case, Rows], dict[Case, Count]]:
    """What every way writes at every batch size, and what it took."""
    found, counts = {}, {}
    for size, given in ready.batches.items():
        for way, write in ready.ways.items():
            with _counted(ready.decoders[way]) as counts[way, size]:
                found[way, size] = _run(write, given)()
    return found, counts


def differences(found: Mapping[Case, Rows], tokenizer: Any) -> list[str]:
    """A line for each way and batch size that parts from the naive text: where, and with which tokens."""
    lines = []
    for (way, size), rows in found.items():
        for number, (mine, naive) in enumerate(zip(rows, found["naive", 1], strict=True), 1):
            if mine != naive:
                place = next((i for i, (a, b) in enumerate(zip(mine, naive, strict=False)) if a != b), None)
                at = min(len(mine), len(naive)) if place is None else place
                said, wanted = (ascii(tokenizer.decode(row[at : at + 1])) for row in (mine, naive))
                lines.append(
                    f"{way}, batch {size}: prompt {number} parts at token {at + 1}: {said} instead of {wanted}"
                )
                break
    return lines


def _encode(encoder: Encoder, prompts: Sequence[str], limit: int, most: int | None) -> Rows:
    """The prompts as they are, behind the tokenizer's bos if it has one."""
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
    made = []
    for start in range(0, len(rows), size):
        part = [torch.tensor(row) for row in rows[start : start + size]]
        ids = pad_sequence(part, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in part], batch_first=True)
        made.append((ids.to(device), mask.to(device)))
    return made


def _run(way: Way, given: list[tuple[Tensor, Tensor]]) -> Callable[[], Rows]:
    return lambda: [row for ids, mask in given for row in way(ids, mask)]


def _row(case: Case, times: Mapping[Case, Times], count: Count, new_tokens: int) -> dict[str, Any]:
    way, size = case
    facts = times[case].facts()
    return {
        "way": way,
        "batch_size": size,
        **facts,
        "tokens_per_second": new_tokens / facts["seconds"],
        "forward_passes": count.passes,
        "tokens_read": count.tokens,
        "speed_up": ratio(times["naive", size].wall, times[case].wall),
    }


@contextmanager
def _counted(decoder: Any) -> Iterator[Count]:
    """Counts the calls of a decoder, whoever makes them."""
    count = Count()

    def note(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        read = next(part for part in (given.get("inputs_embeds"), given.get("input_ids"), *args) if part is not None)
        count.passes += 1
        count.tokens += read.shape[0] * read.shape[1]

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
