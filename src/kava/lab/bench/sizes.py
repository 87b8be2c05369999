"""Sizes of the random Llama that `kava bench train` and `kava bench extract` time, and the examples it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kava.backbone.model import LatentModel
from kava.config import LatentConfig
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.lab.bench.reference import random_model

CUE = 4  # tokens of the cue


@dataclass(frozen=True)
class ModelSizes:
    """vocabulary: with 12,000 the output head is the share of the model that it is in Llama-3.2-1B."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    question: int
    cot: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.width // self.heads % 2:
            raise ConfigError(
                f"width {self.width}, heads {self.heads} and kv_heads {self.kv_heads} do not fit",
                "width must be an even multiple of heads, and heads a multiple of kv_heads",
            )

    def model(self, latent: LatentConfig) -> LatentModel:
        return random_model(self.layers, self.width, self.heads, self.kv_heads, self.vocabulary, latent)

    def examples(self, count: int, answer: int, seed: int = 0) -> list[Encoded]:
        """Random ids, all examples of one length: no pass has padding to skip."""
        generator = torch.Generator().manual_seed(seed)

        def draw(length: int) -> list[int]:
            return torch.randint(0, self.vocabulary - 3, (length,), generator=generator).tolist()

        cue = draw(CUE)
        no_results = [False] * self.cot
        return [
            Encoded(f"bench/{i}", draw(self.question), draw(self.cot), no_results, cue, draw(answer), 0)
            for i in range(count)
        ]
