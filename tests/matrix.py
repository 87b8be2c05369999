"""Every compressor x MHA / GQA / MQA x left / right pads x chains of thought shorter, equal and longer than M.

One list serves every test. A compressor entered in `kava.compress.COMPRESSORS` is in it without another line here; add
to `SETTINGS` only what its fields make different. A sample's numbers depend on its id alone, never on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kava.compress import COMPRESSORS, Compressed, Compressor, Samples, importance
from kava.compress.crop import Crop
from kava.compress.rkv import RKV
from kava.compress.rkv_original import RKVOriginal
from kava.compress.shuffle import ShuffleExamples, ShuffleTime

KEEP = 4  # M
WIDTH = 4  # D
SEED, EPOCH = 7, 2
HEADS = {"mha": (4, 1), "gqa": (2, 3), "mqa": (1, 4)}  # H, R
PADS = ("left", "right")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
LENGTHS = {  # N_C of each sample: 0, < M, = M, > M; together and one by one
    "mixed": (9, 0, KEEP, 2, 13, 1),
    "none": (0,),
    "fewer": (2,),
    "equal": (KEEP,),
    "more": (9,),
}
SETTINGS: dict[str, Callable[[], Compressor]] = {
    "rkv-lambda0": lambda: RKV(lambda_=0.0),
    "rkv-lambda1": lambda: RKV(lambda_=1.0),
    "rkv_original-half": lambda: RKVOriginal(lambda_=0.5),
    "rkv-centred": lambda: RKV(centred=True),
    "rkv_original-centred": lambda: RKVOriginal(centred=True),
    "crop-first": lambda: Crop(side="first"),
}
PLAIN = {**COMPRESSORS, **SETTINGS}
SHUFFLED_TIME = {f"{name}+time": (lambda kind=kind: ShuffleTime(inner=kind())) for name, kind in COMPRESSORS.items()}
SHUFFLED_EXAMPLES = {
    f"{name}+examples": (lambda kind=kind: ShuffleExamples(inner=kind())) for name, kind in COMPRESSORS.items()
}
VARIANTS: dict[str, Callable[[], Compressor]] = {**PLAIN, **SHUFFLED_TIME}  # + SHUFFLED_EXAMPLES, which need partners


@dataclass(frozen=True, repr=False, eq=False)  # compared and cached by identity
class Case:
    """A padded batch as a compressor sees it, and where each sample begins."""

    queries: Tensor  # [B, H*R, A, D]
    keys: Tensor  # [B, H, N, D]
    values: Tensor
    mask: Tensor  # [B, N]
    answer_mask: Tensor  # [B, A]
    samples: Samples
    lengths: tuple[int, ...]
    first: tuple[int, ...]  # column of each sample's first real entry

    def __repr__(self) -> str:
        return f"Case(lengths={self.lengths}, first={self.first}, heads={self.keys.shape[1]}, {self.keys.dtype})"

    @property
    def scale(self) -> float:
        return self.keys.shape[-1] ** -0.5

    def importance(self) -> Tensor:
        return importance(self.queries, self.keys, self.answer_mask, self.mask, self.scale)


def compress(compressor: Compressor, case: Case, keep: int = KEEP) -> Compressed:
    """The call, importance only where it is asked for."""
    weight = case.importance() if compressor.needs_importance else None
    return compressor(case.keys, case.values, case.mask, weight, keep, samples=case.samples)


@cache
def _sample(example_id: int, length: int, heads: int, per_group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """queries, keys, values, result of one sample without padding, in float64."""
    draw = torch.Generator().manual_seed(1000 * example_id + length)
    answers = 1 + example_id % 3
    queries = torch.randn(heads * per_group, answers, WIDTH, generator=draw, dtype=torch.float64) * 2
    keys = torch.randn(heads, length, WIDTH, generator=draw, dtype=torch.float64) + 0.5  # some alike: cos > 0.5
    values = torch.randn(heads, length, WIDTH, generator=draw, dtype=torch.float64)
    if heads == 1:  # mqa: keys around a constant, as in Qwen2.5, where queries hardly look
        keys[..., -1] += 100 * (1 + example_id % 3)
        keys[..., :-1] *= 10
        queries = queries * torch.tensor([0.1] * (WIDTH - 1) + [0.002], dtype=torch.float64)
    result = torch.rand(length, generator=draw) < 0.6
    result[:1] = True
    return queries, keys, values, result


def _pad(parts: list[Tensor], dim: int, side: str, extra: int, garbage: float) -> Tensor:
    """Stacked, each padded along `dim` to the longest plus `extra`; padding is not zero, so that a leak shows."""
    width = max(part.shape[dim] for part in parts) + extra
    rows = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = width - part.shape[dim]
        empty = torch.full(shape, garbage, dtype=torch.float64).to(part.dtype)
        rows.append(torch.cat([part, empty] if side == "right" else [empty, part], dim))
    return torch.stack(rows)


@cache
def make_case(
    heads: str,
    pads: str,
    lengths: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    ids: tuple[int, ...] | None = None,
    extra: int = 2,
    garbage: float = 30.0,
) -> Case:
    """A batch of samples of these lengths; `extra` columns of padding beyond the longest. Cached: never write to it."""
    num_heads, per_group = HEADS[heads]
    ids = ids or tuple(range(1, len(lengths) + 1))
    parts = [_sample(i, n, num_heads, per_group) for i, n in zip(ids, lengths, strict=True)]
    queries, keys, values, result = ([part[k] for part in parts] for k in range(4))
    real = [torch.ones(n, dtype=torch.bool) for n in lengths]
    answers = [torch.ones(q.shape[1], dtype=torch.bool) for q in queries]
    width = max(lengths) + extra
    return Case(
        queries=_pad(queries, 1, pads, extra, garbage).to(dtype),
        keys=_pad(keys, 1, pads, extra, garbage).to(dtype),
        values=_pad(values, 1, pads, extra, garbage).to(dtype),
        mask=_pad(real, 0, pads, extra, 0.0),
        answer_mask=_pad(answers, 0, pads, extra, 0.0),
        samples=Samples(torch.tensor(ids), _pad(result, 0, pads, extra, 1.0), SEED, EPOCH),
        lengths=lengths,
        first=tuple(width - n if pads == "left" else 0 for n in lengths),
    )


def cases(heads: str, dtype: torch.dtype = torch.float64) -> list[Case]:
    """N_C of every kind, left and right pads: together in one batch, then each on its own."""
    return [make_case(heads, pads, lengths, dtype) for pads in PADS for lengths in LENGTHS.values()]


def alone(case: Case, row: int, heads: str) -> Case:
    """The same sample as a batch of one without any padding."""
    sample = int(case.samples.example_id[row])
    return make_case(heads, "right", (case.lengths[row],), case.keys.dtype, (sample,), extra=0)
