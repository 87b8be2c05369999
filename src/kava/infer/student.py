"""A trained student, ready to be asked: `Student.from_pretrained(folder).answer(["..."])`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava import answers
from kava.backbone.artifact import load_student
from kava.backbone.model import LatentModel
from kava.config import Recipe
from kava.data.encode import CUE, QUESTION_END, Encoder
from kava.data.progress import progress_bar
from kava.errors import ConfigError, DataError
from kava.infer.generate import Generation, Sampling, generate, think


@dataclass(frozen=True)
class Answer:
    """text as generated (after the cue, where the cue is given); value the number in it, None if there is none."""

    text: str
    value: str | None
    forward_passes: int
    truncated: bool
    executed: int
    num_tokens: int


class Student:
    """A LatentModel with its tokenizer and the recipe it was trained with."""

    def __init__(self, model: LatentModel, tokenizer: Any, recipe: Recipe):
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self._encoder = Encoder(tokenizer, recipe.dataset.drop_last_step, recipe.dataset.cot_type)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto", base: str | None = None) -> Student:
        """Loads a student's folder; `base` overrides where a LoRA student's base model is found."""
        model, tokenizer, recipe = load_student(path, base)
        return cls(model.to(pick_device(device)), tokenizer, recipe)

    def answer(
        self,
        questions: Sequence[str],
        mode: str = "latent",
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        latents: Tensor | None = None,
    ) -> list[Answer]:
        """One Answer per question, in order. The batch size changes nothing but the time.

        `latents` [n, M, E], a row per question, stand in for those that `think` gives.
        """
        settings = self.recipe.evaluation
        sampling = sampling or Sampling(settings.temperature, settings.top_p)
        limit = max_new_tokens or settings.max_new_tokens
        lead = self._lead(mode)
        found: dict[int, Answer] = {}
        for chosen in self._batches(questions, batch_size):
            ids, mask = self._encoded([questions[i] for i in chosen], len(lead) + limit)
            given = None if latents is None else latents[chosen].to(ids.device)
            made = generate(self.model, ids, mask, lead, self._encoder.eos, limit, mode, sampling, given)
            found.update(zip(chosen, (self._read(generation, mode) for generation in made), strict=True))
        return [found[i] for i in range(len(questions))]

    def think(self, questions: Sequence[str], batch_size: int | None = None, progress: bool = False) -> Tensor:
        """The latents of each question, [n, M, E] float32 on the CPU: input embeddings of their last pass."""
        if not self.model.feeds_back:
            raise ConfigError("this student thinks no latents: T or M is 0")
        found = torch.empty(len(questions), self.model.latent.num_tokens, self.model.config.hidden_size)
        batches = self._batches(questions, batch_size)
        for chosen in progress_bar(batches, f"think about {len(questions)} questions", progress):
            found[chosen] = think(self.model, *self._encoded([questions[i] for i in chosen])).float().cpu()
        return found

    def stream(self, questions: Sequence[str], batch_size: int, **settings: Any) -> Iterator[list[Answer]]:
        """Batch by batch, for progress bars."""
        for start in range(0, len(questions), batch_size):
            yield self.answer(questions[start : start + batch_size], batch_size=batch_size, **settings)

    def _batches(self, questions: Sequence[str], batch_size: int | None) -> list[list[int]]:
        """Indices, batch by batch; like lengths together: less padding."""
        size = batch_size or self.recipe.evaluation.batch_size
        order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _encoded(self, questions: list[str], more: int = 0) -> tuple[Tensor, Tensor]:
        """ids and mask [B, Q], once they are known to fit with `more` tokens behind the thought."""
        bos = self._encoder.bos
        texts = [question + QUESTION_END for question in questions]
        rows = [bos + list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        self._check_length(rows, questions, 2 + self.model.latent.num_tokens + more)
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        self.model.eval()
        return ids.to(self.model.device), mask.to(self.model.device)

    def _check_length(self, rows: list[list[int]], questions: list[str], more: int) -> None:
        most = self.model.max_positions
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if most is not None and len(rows[longest]) + more > most:
            raise DataError(
                f"a question of {len(rows[longest])} tokens and {more} more for thought and answer do not fit into the "
                f"model's {most} positions: {questions[longest][:60]!r}",
                "ask a shorter question, or lower max_new_tokens",
            )

    def _lead(self, mode: str) -> list[int]:
        """The cue, where it is given; an explicit chain of thought always writes its own."""
        return self._encoder.cue if mode != "cot" and self.recipe.evaluation.cue == "given" else []

    def _read(self, generation: Generation, mode: str) -> Answer:
        text = self.tokenizer.decode(generation.tokens, skip_special_tokens=True).strip()
        marked = f"{CUE} {text}" if self._lead(mode) else text
        return Answer(
            text=text,
            value=answers.flexible(marked),
            forward_passes=generation.forward_passes,
            truncated=generation.truncated,
            executed=generation.executed,
            num_tokens=len(generation.tokens) + (not generation.truncated),
        )


def pick_device(name: str) -> torch.device:
    """auto = CUDA, else MPS, else CPU; a device that is not there is an error, not a fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present.get(name.split(":")[0], False):
        raise ConfigError(f"device {name!r} is not available on this machine", "use --device cpu or auto")
    return torch.device(name)
