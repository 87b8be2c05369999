"""What lm-evaluation-harness asks of a model, answered by a student. Needs no harness: `kava.harness.__main__` registers it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kava.data.encode import CUE
from kava.errors import ConfigError, DataError
from kava.harness.settings import TaskSettings, read_settings
from kava.infer.checks import MODES, check_choice, own_mode
from kava.infer.student import Student
from kava.registry import nearest

ARGUMENTS = (
    "pretrained",
    "reasoning",
    "base",
    "revision",
    "exact_adapters",
    "trust_remote_code",
    "device",
    "batch_size",
)
DEVICE = "cuda:0"  # the harness's --device where none is given, on machines without a GPU, too
NO_LIKELIHOOD = "a student only answers questions: take generate_until tasks, such as gsm8k"


class HarnessStudent:
    """A student that answers generate_until requests; each prompt is one question.

    A text begins with the cue where that is given to the student, so that it reads as if the student had written it.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        arguments.pop("max_batch_size", None)  # only for sizes that the harness finds out by itself
        _check_arguments(arguments)
        size, reasoning = _batch_size(arguments.get("batch_size")), arguments.get("reasoning")
        check_choice("--model_args: reasoning", reasoning, MODES)
        self.student = Student.from_pretrained(
            str(arguments["pretrained"]),
            _device(arguments.get("device")),
            arguments.get("base"),
            arguments.get("trust_remote_code", False),
            arguments.get("exact_adapters", False),
            arguments.get("revision"),
        )
        self.mode, self.size = reasoning or own_mode(self.student.recipe), size

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of each request, in order, cut before the first of the task's stop texts."""
        groups: dict[TaskSettings, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(read_settings(request.args[1], request.task_name), []).append(place)
        texts: dict[int, str] = {}
        for settings, places in groups.items():
            prompts = [requests[place].args[0].strip() for place in places]
            try:
                made = self._texts(prompts, settings, not disable_tqdm)
            except DataError as error:
                raise DataError(f"task {requests[places[0]].task_name}: {error.message}", error.hint) from error
            texts.update(zip(places, made, strict=True))
        return [texts[place] for place in range(len(requests))]

    def _texts(self, prompts: Sequence[str], settings: TaskSettings, progress: bool) -> list[str]:
        """A prompt that does not fit into the model has an empty text, as `kava evaluate` counts it as not answered."""
        problems = self.student.too_long(prompts, self.mode, settings.limit)
        if problems and len(problems) == len(prompts):
            raise DataError(f"none of {len(prompts)} prompts fits into the model: {problems[0]}", "--num_fewshot 0")
        if problems:
            first = next(iter(problems.values()))
            message = "%d of %d prompts are too long and count as not answered; the first: %s"
            logging.getLogger(__name__).warning(message, len(problems), len(prompts), first)
        fitting = [place for place in range(len(prompts)) if place not in problems]
        questions = [prompts[place] for place in fitting]
        answers = self.student.answer(
            questions, self.mode, self.size, settings.limit, settings.sampling, progress=progress
        )
        lead = f"{CUE} " if self.student.lead(self.mode) else ""
        texts = {place: lead + settings.cut(answer.text) for place, answer in zip(fitting, answers, strict=True)}
        return [texts.get(place, "") for place in range(len(prompts))]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Raises: the probability of a text depends on a thought that the text does not contain."""
        raise ConfigError(f"task {requests[0].task_name} asks for log-likelihoods", NO_LIKELIHOOD)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Raises, as `loglikelihood`."""
        raise ConfigError(f"task {requests[0].task_name} asks for log-likelihoods", NO_LIKELIHOOD)

    @property
    def tokenizer_name(self) -> str:
        """Raises: the harness asks for it only with a chat template."""
        raise ConfigError("--apply_chat_template: a student writes its own prompt", "leave it out")

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        """Raises: a student's recipe says how it reads a question."""
        raise ConfigError("--apply_chat_template: a student writes its own prompt", "leave it out")


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if unknown := [name for name in arguments if name not in ARGUMENTS]:
        raise ConfigError(f"--model_args: kava has no argument {unknown[0]!r}", nearest(unknown[0], list(ARGUMENTS)))
    if not arguments.get("pretrained"):
        raise ConfigError("--model_args has no pretrained", "pretrained=RUN/best_checkpoint, or owner/name of the hub")
    for name in ("exact_adapters", "trust_remote_code"):
        if not isinstance(value := arguments.get(name, False), bool):
            raise ConfigError(f"--model_args: {name} = {value!r} is not valid", "write True or False")


def _device(value: str | None) -> str:
    """The harness's --device; auto where it is its default."""
    return "auto" if value in (None, "", DEVICE) else value


def _batch_size(value: Any) -> int | None:
    """The harness's --batch_size; None, the recipe's own, for auto."""
    if value is None or str(value).partition(":")[0] == "auto":
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ConfigError(f"--batch_size {value} is not valid", "give a whole number from 1 on, or auto")
    return int(value)
