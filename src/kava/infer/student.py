"""A trained student that answers questions: `Student.from_pretrained(folder).answer(["..."])`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava import answers
from kava.backbone.artifact import load_student
from kava.backbone.model import LatentModel
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import CUE, Encoder
from kava.errors import ConfigError, DataError
from kava.infer.checks import MODES, check_choice, check_count, check_questions, own_mode, stored_recipe
from kava.infer.generate import Generation, Sampling, generate, think
from kava.progress import progress as progress_of
from kava.progress import track


@dataclass(frozen=True)
class Answer:
    """`text` as generated (after the cue, if that is given); `value` is the number in it, None without one."""

    text: str
    value: str | None
    forward_passes: int
    truncated: bool
    executed: int
    num_tokens: int


class Student:
    """A LatentModel with its tokenizer and the recipe it was trained with; `folder` is where it was loaded from."""

    def __init__(self, model: LatentModel, tokenizer: Any, recipe: Recipe, folder: Path | None = None):
        self.model, self.tokenizer, self.recipe, self.folder = model, tokenizer, recipe, folder
        dataset = recipe.dataset
        self._encoder = Encoder(tokenizer, dataset.drop_last_step, dataset.cot_type, dataset.prompt)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str = "auto", base: str | None = None, trust_remote_code: bool = False
    ) -> "Student":
        """Loads a student's folder; `base` overrides where a LoRA student's base model is found.

        `trust_remote_code` lets code run that came with the student or its base; files of the folder cannot.
        """
        stored_recipe(path)  # its errors say what the folder is instead
        silence_libraries()
        with progress_of(f"loading the student {Path(path).name}"):
            model, tokenizer, recipe = load_student(path, base, trust_remote_code)
            return cls(model.to(pick_device(device)), tokenizer, recipe, Path(path))

    def answer(
        self,
        questions: Sequence[str],
        mode: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        latents: Tensor | None = None,
        progress: bool = False,
    ) -> list[Answer]:
        """One Answer per question, in order. The batch size changes nothing but the time.

        mode      latent, cot or direct; None: as the student was trained
        sampling  None: the recipe's temperature and top_p
        latents   [n, M, E], a row per question, in place of those that `think` gives
        """
        check_questions(questions)
        check_choice("mode", mode, MODES)
        check_count("max_new_tokens", max_new_tokens)
        if latents is not None:
            self._check_latents(latents, len(questions))
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling is a {type(sampling).__name__}", "give Sampling(temperature, top_p)")
        mode, sampling = mode or own_mode(self.recipe), sampling or sampling_of(self.recipe)
        for i, problem in self.too_long(questions, mode, max_new_tokens).items():
            raise DataError(f"question {i + 1}: {problem}", "ask a shorter question, or lower max_new_tokens")
        limit, lead = max_new_tokens or self.recipe.evaluation.max_new_tokens, self._lead(mode)
        answers: dict[int, Answer] = {}
        for rows in track(self._batches(questions, batch_size), "answers", unit="batches", show=progress):
            ids, mask = self._encoded([questions[i] for i in rows])
            replaced = None if latents is None else latents[rows].to(ids.device)
            made = generate(self.model, ids, mask, lead, self._encoder.eos, limit, mode, sampling, replaced)
            answers.update(zip(rows, (self._read(generation, mode) for generation in made), strict=True))
        return [answers[i] for i in range(len(questions))]

    def think(self, questions: Sequence[str], batch_size: int | None = None, progress: bool = False) -> Tensor:
        """The latents of each question, [n, M, E] float32 on the CPU: input embeddings of their last pass."""
        check_questions(questions)
        if not self.model.feeds_back:
            raise ConfigError("this student thinks no latents: T or M is 0")
        latents = torch.empty(len(questions), self.model.latent.num_tokens, self.model.config.hidden_size)
        for rows in track(self._batches(questions, batch_size), "latents", unit="batches", show=progress):
            latents[rows] = think(self.model, *self._encoded([questions[i] for i in rows])).float().cpu()
        return latents

    def _check_latents(self, latents: Any, count: int) -> None:
        if not isinstance(latents, Tensor):
            raise DataError(f"latents is a {type(latents).__name__}, not a tensor", "give what Student.think returns")
        shape = (count, self.model.latent.num_tokens, self.model.config.hidden_size)
        if tuple(latents.shape) != shape:
            raise DataError(f"latents have the shape {tuple(latents.shape)}, not {shape}", "one row per question")
        if not torch.isfinite(latents).all():
            rows = (~torch.isfinite(latents).flatten(1).all(1)).nonzero().flatten().tolist()
            raise DataError(f"latents of question {rows[0] + 1} are not finite")

    def _batches(self, questions: Sequence[str], batch_size: int | None) -> list[list[int]]:
        """Indices of the questions of each batch; similar lengths together, for less padding."""
        check_count("batch_size", batch_size)
        size = batch_size or self.recipe.evaluation.batch_size
        order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def too_long(
        self, questions: Sequence[str], mode: str | None = None, max_new_tokens: int | None = None
    ) -> dict[int, str]:
        """The questions that do not fit into the model with their thought and answer: place -> what is wrong."""
        most = self.model.max_positions
        if most is None:
            return {}
        limit, lead = max_new_tokens or self.recipe.evaluation.max_new_tokens, self._lead(mode or own_mode(self.recipe))
        more = 2 + self.model.latent.num_tokens + len(lead) + limit
        return {
            i: f"{len(row)} tokens and {more} more for thought and answer do not fit into the model's {most} positions: "
            f"{questions[i][:60]!r}"
            for i, row in enumerate(self._encoder.questions(questions))
            if len(row) + more > most
        }

    def _encoded(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids and mask [B, Q]."""
        ids, mask = Collator(self.tokenizer.pad_token_id).pad(self._encoder.questions(questions))
        self.model.eval()
        return ids.to(self.model.device), mask.to(self.model.device)

    def _lead(self, mode: str) -> list[int]:
        """The cue's tokens if it is given; a written chain of thought always writes its own."""
        return self._encoder.cue if mode != "cot" and self.recipe.evaluation.cue == "given" else []

    def _read(self, generation: Generation, mode: str) -> Answer:
        text = self.tokenizer.decode(generation.tokens, skip_special_tokens=True).strip()
        value = answers.flexible(f"{CUE} {text}" if self._lead(mode) else text)
        passes, truncated = generation.forward_passes, generation.truncated
        return Answer(text, value, passes, truncated, generation.executed, len(generation.tokens) + (not truncated))


def sampling_of(recipe: Recipe, temperature: float | None = None, generator: torch.Generator | None = None) -> Sampling:
    """The recipe's temperature and top_p, or another temperature."""
    settings = recipe.evaluation
    return Sampling(settings.temperature if temperature is None else temperature, settings.top_p, generator)


def pick_device(name: str) -> torch.device:
    """auto = CUDA, else MPS, else CPU; a device that is not available is an error, not a fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present.get(name.split(":")[0], False):
        raise ConfigError(f"device {name!r} is not available on this machine", "use --device cpu or auto")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The GPU's name, else the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
