"""Between HTTP and the engine: requests become asks, checked and counted; updates find their way back."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

import torch

from kava.config import LatentConfig, Recipe
from kava.errors import KavaError, ModelError
from kava.evaluation.overrides import EvalOverrides, overridden
from kava.infer.checks import check_questions, own_mode
from kava.infer.sampling import Sampling
from kava.infer.student import Student
from kava.serve.api_error import ApiError
from kava.serve.ask import Ask, Update
from kava.serve.engine import NO_MEMORY, Engine
from kava.serve.facts import facts_of
from kava.serve.limits import ServeLimits
from kava.serve.look_between_steps import look_between_steps
from kava.serve.metrics import Metrics
from kava.serve.schema import AnswerRequest, LensRequest
from kava.serve.worker import Worker, WorkerEnded

ENGINE_DIED = "the engine has stopped; the server has to be started again"


class Service:
    """A student that answers requests. Its methods belong to the event loop; the engine works in a thread of its own."""

    def __init__(self, student: Student, model_name: str, limits: ServeLimits | None = None):
        self.student, self.model_name, self.limits = student, model_name, limits or ServeLimits()
        self.created, self.facts = int(time.time()), facts_of(student.recipe)
        self.draining = False
        self.metrics = Metrics()
        student.encode(["1"])  # sets the tokenizer up for texts; from then on two threads may read it
        self.engine = Engine(student, self.limits.max_batch)
        self._open: dict[Ask, float] = {}  # asks that are not answered yet -> when they were submitted
        self._lenses = 0  # under way or waiting
        self._seconds = 1.0  # that an answer took lately
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = Worker(self.engine, self._from_thread, self._thread_died)
        self.metrics.gauge("kava_active_answers", lambda: len(self.engine.active))
        self.metrics.gauge("kava_waiting_answers", lambda: len(self.engine.waiting))
        self.metrics.gauge("kava_decode_steps", lambda: self.engine.steps)
        self.metrics.gauge("kava_decode_rows", lambda: self.engine.rows_in_steps)

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    def stop(self) -> None:
        self._worker.stop()

    def asks(self, request: AnswerRequest, questions: Sequence[str], limit: int | None) -> list[Ask]:
        """An Ask for each question and choice, or an ApiError that names the field."""
        self._check_model(request.model)
        count, recipe = request.n or 1, self.student.recipe
        mode = request.reasoning or own_mode(recipe)
        settings = recipe.evaluation
        temperature = settings.temperature if request.temperature is None else request.temperature
        if count * len(questions) > self.limits.max_choices:
            most = f"at most {self.limits.max_choices} answers to a request"
            raise ApiError(400, f"n: {count * len(questions)} answers; {most}", "n")
        if count > 1 and temperature == 0:
            raise ApiError(400, "n: at temperature 0 all answers are the same; give a temperature above 0", "n")
        top_p = settings.top_p if request.top_p is None else request.top_p
        seed = secrets.randbits(62) if request.seed is None else request.seed
        sampling, latent = Sampling(temperature, top_p, seed), self._recipe(request, mode, request.ablate).latent
        zeroed = self._zeroed(request, latent)
        limit = limit or min(settings.max_new_tokens, self.limits.max_new_tokens)
        if limit > self.limits.max_new_tokens:
            raise ApiError(400, f"max_tokens: {limit}; at most {self.limits.max_new_tokens}", "max_tokens")
        return [
            Ask(ids, mode, latent, limit, sampling, _nowhere, number, request.stops, bool(request.stream), zeroed)
            for ids in self._encoded(questions, mode, limit, latent.num_tokens)
            for number in range(count)
        ]

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[Update, None]:
        """The updates of all asks until each has its final one; whoever stops listening cancels them."""
        self._check_room(len(asks))
        updates: asyncio.Queue[Update] = asyncio.Queue()
        now = time.monotonic()
        for ask in asks:
            ask.receive = updates.put_nowait
            self._open[ask] = now
        left = len(asks)
        try:
            self._worker.submit(asks)
            while left:
                update = await updates.get()
                left -= update.final
                yield update
        finally:
            for ask in asks:
                ask.cancelled = True
                self._open.pop(ask, None)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            raise ApiError(404, f"model: {name[:100]!r} is not served here; this is {self.model_name!r}", "model")

    def _check_room(self, count: int) -> None:
        if not self.alive:
            raise ApiError(503, ENGINE_DIED)
        if len(self._open) + count > self.limits.max_batch + self.limits.max_queue:
            self.metrics.count("kava_refused_total")
            wait = math.ceil(min(60.0, max(1.0, self._seconds * len(self._open) / self.limits.max_batch)))
            message = f"{len(self._open)} answers are under way or waiting, which is all this server takes; try later"
            raise ApiError(429, message, headers={"Retry-After": str(wait)})

    async def lens(self, request: LensRequest) -> dict[str, Any]:
        """The lens on one question, from the engine's thread between two tokens of the answers under way."""
        self._check_model(request.model)
        recipe = self._recipe(request, "latent")
        limit = min(recipe.evaluation.max_new_tokens, self.limits.max_new_tokens)
        self._encoded([request.question], "latent", limit, recipe.latent.num_tokens)
        if self._lenses >= self.limits.max_lenses:
            self.metrics.count("kava_refused_total")
            message = f"{self._lenses} looks into latents are under way or waiting; try later"
            raise ApiError(429, message, headers={"Retry-After": "2"})
        self._lenses += 1
        try:
            work = partial(look_between_steps, self.engine, recipe, request.question, request.top, limit)
            return await asyncio.wrap_future(self._worker.call(work))
        except KavaError as error:
            raise ApiError(400, error.message) from error
        except WorkerEnded as error:
            raise ApiError(503, ENGINE_DIED) from error
        except torch.OutOfMemoryError as error:
            raise ApiError(503, NO_MEMORY) from error
        finally:
            self._lenses -= 1

    def _recipe(self, request: AnswerRequest | LensRequest, mode: str, ablate: str | None = None) -> Recipe:
        """The student's recipe with M and T of this request."""
        recipe = self.student.recipe
        overrides = EvalOverrides(ablate, request.num_tokens, request.num_iterations)
        try:
            if mode != "cot":
                _ = self.student.model.special
            return overridden(recipe, overrides.checked(recipe, mode))
        except ModelError as error:
            raise ApiError(400, f"reasoning {mode}: {error.message}; give reasoning cot", "reasoning") from error
        except KavaError as error:
            names = ("num_tokens", "num_iterations", "ablate")
            param = next((name for name in names if name in error.message), "reasoning")
            raise ApiError(400, error.message.removeprefix("--"), param) from error

    def _zeroed(self, request: AnswerRequest, latent: LatentConfig) -> tuple[int, ...]:
        """The latents that this request replaces by zeros."""
        slots = request.ablate_slots
        if request.ablate is None:
            if slots is not None:
                raise ApiError(400, "ablate_slots has no effect without ablate", "ablate_slots")
            return ()
        if slots is not None and max(slots) >= latent.num_tokens:
            message = f"ablate_slots: {max(slots)}; there are {latent.num_tokens} latents, counted from 0"
            raise ApiError(400, message, "ablate_slots")
        return tuple(range(latent.num_tokens) if slots is None else sorted(set(slots)))

    def _encoded(self, questions: Sequence[str], mode: str, limit: int, num_latents: int) -> list[tuple[int, ...]]:
        try:
            check_questions(questions)
            rows = [tuple(row) for row in self.student.encode(questions)]
        except KavaError as error:
            raise ApiError(400, error.message) from error
        most, more = self.student.model.max_positions, self.student.columns_after(mode, limit, num_latents)
        for row in rows:
            if len(row) > self.limits.max_input_tokens:
                raise ApiError(400, f"the question has {len(row)} tokens; at most {self.limits.max_input_tokens}")
            if most is not None and len(row) + more > most:
                fits = f"do not fit into the model's {most} positions"
                raise ApiError(400, f"the question's {len(row)} tokens and {more} for thought and answer {fits}")
        return rows

    def _from_thread(self, updates: list[Update]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, updates)

    def _thread_died(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: self._deliver([Update(ask, error=ENGINE_DIED) for ask in self._open]))

    def _deliver(self, updates: Sequence[Update]) -> None:
        for update in updates:
            ask, answer = update.ask, update.answer
            if ask.cancelled:
                continue
            if update.final and (began := self._open.pop(ask, None)) is not None:
                self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            if answer is not None:
                self.metrics.count("kava_answers_total", reasoning=ask.mode)
                self.metrics.count("kava_question_tokens_total", len(ask.ids))
                self.metrics.count("kava_answer_tokens_total", answer.num_tokens)
                self.metrics.count("kava_forward_passes_total", answer.forward_passes)
            ask.receive(update)


def _nowhere(update: Update) -> None:
    raise AssertionError("this ask was not submitted")
