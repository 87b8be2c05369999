"""How the next token is chosen: the likeliest one, or a draw that depends on seed, question and number of the sample alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kava.data.example import stable_hash
from kava.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. With a seed a question's n-th sample is always the same, whatever shares its batch."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(value := getattr(self, name), int | float) or isinstance(value, bool):
                raise ConfigError(f"{name} = {value!r} is not valid", "give a number")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature = {self.temperature!r} is not valid", "give a finite number from 0 on")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p!r} is not valid", "give a number above 0, at most 1")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            raise ConfigError(f"seed = {self.seed!r} is not valid", "give a whole number")

    def draws(self, questions: Sequence[Sequence[int]], numbers: Sequence[int], count: int) -> Tensor:
        """Uniform numbers [n, count] in [0, 1): a row for sample `numbers[i]` of the question with the ids `questions[i]`.

        Without a seed they come from torch's global generator.
        """
        if self.seed is None:
            return torch.rand(len(questions), count, dtype=torch.float64)
        seeds = [
            stable_hash(f"{self.seed} {number} {list(ids)}", "sample")
            for ids, number in zip(questions, numbers, strict=True)
        ]
        rows = [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows)

    def choose(self, logits: Tensor, draws: Tensor | None = None) -> Tensor:
        """logits [B, V], draws [B] in [0, 1) -> token ids [B]: the token in whose share of [0, 1) the draw lies."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, index = probabilities.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
        if draws is None:
            draws = torch.rand(len(logits), dtype=torch.float64)
        wide = torch.float32 if logits.device.type == "mps" else torch.float64  # which has no float64
        shares = probabilities.to(wide).cumsum(-1)
        place = draws.to(shares)[:, None] * shares[:, -1:]
        return torch.searchsorted(shares, place, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
