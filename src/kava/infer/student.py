"""A trained student that answers questions: `Student.from_pretrained(folder).answer(["..."])`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from kava import answers
from kava.backbone.artifact import load_student
from kava.backbone.fold import folded, has_adapters
from kava.backbone.model import LatentModel
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import CUE, Encoder
from kava.errors import ConfigError, DataError
from kava.infer.checkpoint import checkpoint_folder
from kava.infer.checks import MODES, check_choice, check_count, check_questions, own_mode, stored_recipe
from kava.infer.generate import Generation, generate, think
from kava.infer.sampling import Sampling
from kava.progress import progress as progress_of
from kava.progress import track

if TYPE_CHECKING:
    from kava.lens.records import LensReport
    from kava.share.push import Pushed


@dataclass(frozen=True)
class Answer:
    """`text` as generated (after the cue, if that is given); `value` is the number in it, None without one.
    `log_probability` of the generated tokens, if they were drawn."""

    text: str
    value: str | None
    forward_passes: int
    truncated: bool
    executed: int
    num_tokens: int
    log_probability: float | None = None


class Student:
    """A LatentModel with its tokenizer and the recipe it was trained with; `folder` is where it was loaded from.

    LoRA adapters are folded into a second copy of the weights they belong to when it first answers, unless
    `exact_adapters`: then they are computed as in training, in more time. `model` is never changed.
    """

    def __init__(
        self,
        model: LatentModel,
        tokenizer: Any,
        recipe: Recipe,
        folder: Path | None = None,
        exact_adapters: bool = False,
    ):
        self.model, self.tokenizer, self.recipe, self.folder = model, tokenizer, recipe, folder
        self.exact_adapters = exact_adapters
        self._folded: tuple[list[tuple[int, int]], LatentModel] | None = None
        self._encoder = Encoder.of(tokenizer, recipe.dataset)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        base: str | None = None,
        trust_remote_code: bool = False,
        exact_adapters: bool = False,
        revision: str | None = None,
    ) -> "Student":
        """Loads a student's folder, or owner/name from the hub at `revision`; `base` overrides where a LoRA student's base
        model is found.

        `trust_remote_code` lets code run that came with the student or its base; files of the folder cannot.
        `exact_adapters`: LoRA adapters are not folded into the weights.
        """
        folder = checkpoint_folder(path, revision)
        stored = stored_recipe(folder)  # its errors say what the folder is instead
        if exact_adapters and not stored.lora.enabled:
            raise ConfigError(
                f"--exact_adapters has no effect: {path} has no adapters (lora.enabled is false)", "leave it out"
            )
        silence_libraries()
        with progress_of(f"loading the student {Path(path).name}"):
            model, tokenizer, recipe = load_student(folder, base, trust_remote_code)
            return cls(model.to(pick_device(device)), tokenizer, recipe, folder, exact_adapters)

    def push_to_hub(self, repo: str, **options: Any) -> "Pushed":
        """Uploads the folder that this student was loaded from, with its model card, to owner/name on the hub, in one
        commit; `options` are those of `kava.share.push.push`: private, merged, revision, licence, ..."""
        from kava.share.push import push

        if self.folder is None:
            raise ConfigError("this student was not loaded from a folder", "load it: Student.from_pretrained(FOLDER)")
        return push(self.folder, repo, **options)

    def lens(self, questions: Sequence[Any], **options: Any) -> "LensReport":
        """What the latents of each question hold; `options` are those of `kava.lens.look.look`: top, batch_size, ..."""
        from kava.lens.look import look

        return look(self, questions, **options)

    @overload
    def answer(
        self,
        questions: Sequence[str],
        mode: str | None = ...,
        batch_size: int | None = ...,
        max_new_tokens: int | None = ...,
        sampling: Sampling | None = ...,
        latents: Tensor | None = ...,
        progress: bool = ...,
        samples: None = ...,
    ) -> list[Answer]: ...

    @overload
    def answer(
        self,
        questions: Sequence[str],
        mode: str | None = ...,
        batch_size: int | None = ...,
        max_new_tokens: int | None = ...,
        sampling: Sampling | None = ...,
        latents: Tensor | None = ...,
        progress: bool = ...,
        *,
        samples: int,
    ) -> list[list[Answer]]: ...

    def answer(
        self,
        questions: Sequence[str],
        mode: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        latents: Tensor | None = None,
        progress: bool = False,
        samples: int | None = None,
    ) -> list[Answer] | list[list[Answer]]:
        """One Answer per question, in order; with `samples` a list of so many. The batch size changes nothing but the time.

        mode      latent, cot or direct; None: as the student was trained
        sampling  None: the recipe's temperature and top_p; with a seed a question's n-th sample is always the same
        latents   [n, M, E], a row per question, in place of those that `think` gives
        """
        check_questions(questions)
        check_choice("mode", mode, MODES)
        check_count("max_new_tokens", max_new_tokens)
        check_count("samples", samples)
        if latents is not None:
            self._check_latents(latents, len(questions))
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling is a {type(sampling).__name__}", "give Sampling(temperature, top_p, seed)")
        mode, sampling = mode or own_mode(self.recipe), sampling or sampling_of(self.recipe)
        count = samples or 1
        if count > 1 and sampling.temperature == 0:
            problem = f"{count} samples at temperature 0 are {count} times the same answer"
            raise ConfigError(problem, "give a temperature above 0, such as 0.7")
        for i, problem in self.too_long(questions, mode, max_new_tokens).items():
            raise DataError(f"question {i + 1}: {problem}", "ask a shorter question, or lower max_new_tokens")
        limit, lead = max_new_tokens or self.recipe.evaluation.max_new_tokens, self.lead(mode)
        encoded, model = self.encode(questions), self.answering()
        source = list(range(len(encoded)))  # whose answers each question gets
        if latents is None and (sampling.temperature == 0 or sampling.seed is not None):
            first: dict[tuple[int, ...], int] = {}
            source = [first.setdefault(tuple(row), i) for i, row in enumerate(encoded)]
        answers: dict[tuple[int, int], Answer] = {}  # by question and number of the sample
        batches = self._batches(encoded, set(source), batch_size, count)
        for batch in track(batches, "answers", unit="batches", show=progress):
            places, numbers = [place for place, _ in batch], [number for _, number in batch]
            replaced = None if latents is None else latents[places].to(model.device)
            rows = [encoded[i] for i in places]
            distinct = rows if latents is not None else [list(row) for row in dict.fromkeys(map(tuple, rows))]
            copies = None if latents is not None else [distinct.index(row) for row in rows]
            ids, mask = self.padded(distinct)
            eos = self.eos
            made = generate(model, ids, mask, lead, eos, limit, mode, sampling, replaced, copies, numbers)
            answers.update(zip(batch, (self.read(generation, mode) for generation in made), strict=True))
        if samples is None:
            return [answers[i, 0] for i in source]
        return [[answers[i, number] for number in range(count)] for i in source]

    def think(self, questions: Sequence[str], batch_size: int | None = None, progress: bool = False) -> Tensor:
        """The latents of each question, [n, M, E] float32 on the CPU: input embeddings of their last pass."""
        check_questions(questions)
        if not self.model.feeds_back:
            raise ConfigError("this student thinks no latents: T or M is 0")
        latents = torch.empty(len(questions), self.model.latent.num_tokens, self.model.config.hidden_size)
        encoded, model = self.encode(questions), self.answering()
        batches = self._batches(encoded, range(len(encoded)), batch_size)
        for batch in track(batches, "latents", unit="batches", show=progress):
            rows = [place for place, _ in batch]
            latents[rows] = think(model, *self.padded([encoded[i] for i in rows])).float().cpu()
        return latents

    def by_length(self, questions: Sequence[str]) -> list[int]:
        """Places of the questions, longest first and equal ones side by side: batches of neighbours have least padding."""
        encoded = self.encode(questions)
        return self._sorted(encoded, range(len(encoded)))

    def answering(self) -> LatentModel:
        """The model with its adapters folded in, as of now; the model itself where they have to be exact."""
        self.model.eval()
        if self.exact_adapters or not has_adapters(self.model):
            return self.model
        weights = [(weight.data_ptr(), weight._version) for weight in self.model.trained().values()]
        if self._folded is None or self._folded[0] != weights:
            self._folded = None  # its memory is free before the next copy is made
            self._folded = weights, folded(self.model)
        self._folded[1].latent = self.model.latent
        return self._folded[1]

    def _check_latents(self, latents: Any, count: int) -> None:
        if not isinstance(latents, Tensor):
            raise DataError(f"latents is a {type(latents).__name__}, not a tensor", "give what Student.think returns")
        shape = (count, self.model.latent.num_tokens, self.model.config.hidden_size)
        if tuple(latents.shape) != shape:
            raise DataError(f"latents have the shape {tuple(latents.shape)}, not {shape}", "one row per question")
        if not torch.isfinite(latents).all():
            rows = (~torch.isfinite(latents).flatten(1).all(1)).nonzero().flatten().tolist()
            raise DataError(f"latents of question {rows[0] + 1} are not finite")

    def _batches(
        self, encoded: Sequence[list[int]], places: Iterable[int], batch_size: int | None, samples: int = 1
    ) -> list[list[tuple[int, int]]]:
        """The places of each batch's questions, each with the number of a sample."""
        check_count("batch_size", batch_size)
        size = batch_size or self.recipe.evaluation.batch_size
        order = [(place, number) for place in self._sorted(encoded, places) for number in range(samples)]
        return [order[start : start + size] for start in range(0, len(order), size)]

    @staticmethod
    def _sorted(encoded: Sequence[list[int]], places: Iterable[int]) -> list[int]:
        return sorted(places, key=lambda i: (-len(encoded[i]), encoded[i]))

    def too_long(
        self, questions: Sequence[str], mode: str | None = None, max_new_tokens: int | None = None
    ) -> dict[int, str]:
        """The questions that do not fit into the model with their thought and answer: place -> what is wrong."""
        most = self.model.max_positions
        if most is None:
            return {}
        limit = max_new_tokens or self.recipe.evaluation.max_new_tokens
        more = self.columns_after(mode or own_mode(self.recipe), limit, self.model.latent.num_tokens)
        return {
            i: f"{len(row)} tokens and {more} more for thought and answer do not fit into the model's {most} positions: "
            f"{questions[i][:60]!r}"
            for i, row in enumerate(self.encode(questions))
            if len(row) + more > most
        }

    def columns_after(self, mode: str, max_new_tokens: int, num_latents: int) -> int:
        """Positions that thought and answer take at most, after the question."""
        return 2 + num_latents + len(self.lead(mode)) + max_new_tokens

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """The ids of each question, as the student reads it."""
        return self._encoder.questions(questions)

    def _encoded(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids and mask [B, Q]."""
        return self.padded(self.encode(questions))

    @property
    def eos(self) -> int:
        return self._encoder.eos

    def padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """ids and mask [B, Q] of encoded questions, on the model's device."""
        ids, mask = Collator(self.tokenizer.pad_token_id).pad(rows)
        return ids.to(self.model.device), mask.to(self.model.device)

    def lead(self, mode: str) -> list[int]:
        """The cue's tokens if it is given; a written chain of thought always writes its own."""
        return self._encoder.cue if mode != "cot" and self.recipe.evaluation.cue == "given" else []

    def read(self, generation: Generation, mode: str) -> Answer:
        """The Answer that a generation in this mode is."""
        text = self.tokenizer.decode(generation.tokens, skip_special_tokens=True).strip()
        value = answers.flexible(f"{CUE} {text}" if self.lead(mode) else text)
        passes, truncated = generation.forward_passes, generation.truncated
        count = len(generation.tokens) + (not truncated)
        return Answer(text, value, passes, truncated, generation.executed, count, generation.log_probability)


def sampling_of(recipe: Recipe, temperature: float | None = None, seed: int | None = None) -> Sampling:
    """The recipe's temperature and top_p, or another temperature."""
    settings = recipe.evaluation
    return Sampling(settings.temperature if temperature is None else temperature, settings.top_p, seed)


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
