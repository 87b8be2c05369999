"""Continuous batching: questions join between two tokens of the answers under way, and leave when theirs is done.

One call of `step`: drop who left; read and think about the questions that wait, as far as rows are free, together where
mode, M and T agree; then one token for every row. A row sees its own columns alone (the mask `known`), so an answer is
that of `Student.answer`, whatever shares the batch. No thread is made here; `worker.py` calls `step` from one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from kava.backbone.model import LatentModel
from kava.config import LatentConfig
from kava.infer.ablate import zeroed
from kava.infer.generate import DecodingState, extend, prefill
from kava.infer.sampling import Sampling
from kava.infer.student import Student
from kava.serve.ask import Ask, Update
from kava.serve.growing_text import GrowingText

NO_MEMORY = "the device has no memory left for this batch; ask fewer questions at once or shorter ones"


class Engine:
    """`max_batch` rows at most are answered at once (1: no batching); a pass reads `max_prefill_tokens` of questions,
    padding counted, or one question."""

    def __init__(self, student: Student, max_batch: int = 64, max_prefill_tokens: int = 8192):
        self.student, self.max_batch, self.max_prefill_tokens = student, max_batch, max_prefill_tokens
        self.waiting: deque[Ask] = deque()  # appended to by other threads
        self.active: list[Ask] = []  # the ask of each row of the state
        self.steps = self.rows_in_steps = 0
        self._model = student.answering()
        self._state: DecodingState | None = None

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.active

    @contextmanager
    def thinking(self, latent: LatentConfig) -> Iterator[LatentModel]:
        """The model, with this M and T for now; between two steps only."""
        trained, self._model.latent = self._model.latent, latent
        try:
            yield self._model
        finally:
            self._model.latent = trained

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """One more token for every row, after those that wait have joined; what is new of the answers."""
        self._keep([i for i, ask in enumerate(self.active) if not ask.cancelled])
        updates: list[Update] = []
        for asks in self._batches(self._admitted()):
            try:
                self._join(asks)
            except torch.OutOfMemoryError:
                updates += [Update(ask, error=NO_MEMORY) for ask in asks]
        if not self.active:
            return updates
        self.steps, self.rows_in_steps = self.steps + 1, self.rows_in_steps + len(self.active)
        try:
            return updates + self._decode()
        except torch.OutOfMemoryError:
            updates += [Update(ask, error=NO_MEMORY) for ask in self.active]
            self._keep([])
            return updates

    def _admitted(self) -> list[Ask]:
        """Those that wait, in their order, as far as rows are free."""
        asks: list[Ask] = []
        while self.waiting and len(self.active) + len(asks) < self.max_batch:
            ask = self.waiting.popleft()
            if not ask.cancelled:
                asks.append(ask)
        return asks

    def _batches(self, asks: Sequence[Ask]) -> Iterator[list[Ask]]:
        """Asks that share their passes: the same mode, M and T; longest questions first; not too much of them."""
        keys = list(dict.fromkeys(ask.batch_key for ask in asks))
        order = sorted(asks, key=lambda ask: (keys.index(ask.batch_key), -len(ask.ids), ask.ids))
        for _, group in groupby(order, key=lambda ask: ask.batch_key):
            batch: list[Ask] = []
            for ask in group:
                if batch and (len(batch) + 1) * len(batch[0].ids) > self.max_prefill_tokens:
                    yield batch
                    batch = []
                batch.append(ask)
            yield batch

    def _join(self, asks: list[Ask]) -> None:
        """Reads and thinks about the questions, equal ones once, and puts their rows behind those under way."""
        student, (mode, latent) = self.student, asks[0].batch_key
        places = {key: i for i, key in enumerate(dict.fromkeys((ask.ids, ask.zeroed) for ask in asks))}
        slots = [zeros for _, zeros in places]
        with self.thinking(latent) as model:
            ids, mask = student.padded([list(row) for row, _ in places])
            change = partial(zeroed, slots=slots) if any(slots) else None
            state = prefill(model, ids, mask, student.lead(mode), mode, change=change)
            rounds = model.rounds if mode == "latent" else 0
        state = state.of([places[ask.ids, ask.zeroed] for ask in asks])
        parts = [state] if self._state is None else [self._state, state]
        self._state = DecodingState.stacked(parts)
        self.active += asks
        for ask in asks:
            ask.rounds = rounds
            ask.generation.forward_passes, ask.generation.executed = 1 + rounds, rounds
            if ask.sampling.temperature > 0:
                ask.draws = ask.sampling.draws([ask.ids], [ask.number], ask.limit)[0]
            if ask.stream or ask.stop:
                ask.text = GrowingText(student.tokenizer, ask.stop)

    def _decode(self) -> list[Update]:
        assert self._state is not None
        tokens = self._choose(self._model.head(self._state.hidden))
        updates: list[Update] = []
        going: list[int] = []
        for row, (ask, token) in enumerate(zip(self.active, tokens.tolist(), strict=True)):
            ask.add(token, self.student.eos)
            update = self._update(ask)
            if update is not None:
                updates.append(update)
            if update is None or not update.final:
                going.append(row)
        self._keep(going)
        if self._state is not None:
            embeds = self._model.embed(tokens[going][:, None])
            self._state = extend(self._model, embeds, self._state.prefix, self._state.known)
        return updates

    def _choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: rows of equal temperature and top_p together, each by its own draw."""
        groups: dict[tuple[float, float], list[int]] = {}
        for row, ask in enumerate(self.active):
            warm = ask.sampling.temperature > 0
            groups.setdefault((ask.sampling.temperature, ask.sampling.top_p if warm else 1.0), []).append(row)
        if list(groups) == [(0.0, 1.0)]:
            return Sampling().choose(logits)
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for (temperature, top_p), rows in groups.items():
            draws = torch.tensor([self.active[row].next_draw() for row in rows], dtype=torch.float64)
            tokens[rows] = Sampling(temperature, top_p).choose(logits[rows], draws)
        return tokens

    def _update(self, ask: Ask) -> Update | None:
        """What the row's last token changes; None if nothing that anybody waits for."""
        text, made = ask.text, ask.generation
        new = text.more(made.tokens) if text is not None else ""
        stopped = text.stopped if text is not None else None
        ended = stopped is not None or not made.truncated
        if not ended and ask.chosen < ask.limit:
            return Update(ask, new, ask.chosen) if ask.stream and new else None
        answer = self.student.read(made, ask.mode)
        if stopped is not None:
            answer = replace(answer, text=stopped, truncated=False, num_tokens=ask.chosen)
        if ask.stream and text is not None:
            new += text.rest(answer.text)
        return Update(ask, new if ask.stream else "", ask.chosen, answer, "stop" if ended else "length")

    def _keep(self, rows: list[int]) -> None:
        """Lets the other rows go, and columns that are padding in all that stay."""
        if len(rows) == len(self.active):
            return
        self.active = [self.active[row] for row in rows]
        self._state = self._state.of(rows).trimmed() if rows and self._state is not None else None
