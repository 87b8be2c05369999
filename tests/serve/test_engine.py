"""Continuous batching: whatever shares the batch and whenever it came, an answer is that of `Student.answer`."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from served import QUESTIONS, lively_student

from kava.infer.generate import think
from kava.infer.sampling import Sampling
from kava.infer.student import Answer, Student
from kava.serve.ask import Ask, Update
from kava.serve.engine import Engine
from kava.serve.growing_text import GrowingText


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return lively_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


def latent_of(student: Student, **other: int):
    return student.recipe.changed("latent", **other).latent


def drawn_asks(
    student: Student, count: int, seed: int, stream: bool = False
) -> tuple[list[Ask], dict[Ask, list[Update]]]:
    """Asks of all modes, M, T, limits and samplings, and the updates that each will get."""
    chance = random.Random(seed)
    updates: dict[Ask, list[Update]] = {}
    asks = []
    for _ in range(count):
        mode = chance.choice(["latent", "latent", "cot", "direct"])
        own = {"num_tokens": chance.choice([1, 3]), "num_iterations": chance.choice([1, 2])} if mode == "latent" else {}
        temperature = chance.choice([0.0, 0.0, 0.8, 3.0])
        sampling = Sampling(temperature, chance.choice([1.0, 0.9]) if temperature else 1.0, chance.randrange(5))
        ids = tuple(student.encode([chance.choice(QUESTIONS)])[0])
        ask = Ask(
            ids, mode, latent_of(student, **own), chance.choice([1, 4, 12]), sampling, lambda _: None, stream=stream,
            zeroed=chance.choice([(), (), (0,), tuple(range(own["num_tokens"]))]) if own else (),
        )  # fmt: skip
        updates[ask] = []
        ask.receive = updates[ask].append
        asks.append(ask)
    return asks, updates


def alone(student: Student, ask: Ask) -> Answer:
    """What `Student.answer` says to it."""
    question = next(text for text in QUESTIONS if tuple(student.encode([text])[0]) == ask.ids)
    trained, student.model.latent = student.model.latent, ask.latent
    try:
        latents = None
        if ask.zeroed:
            latents = think(student.answering(), *student.padded([list(ask.ids)])).clone()
            latents[:, list(ask.zeroed)] = 0
        answer = student.answer([question], ask.mode, 1, ask.limit, ask.sampling, latents)[0]
    finally:
        student.model.latent = trained
    return replace(answer, log_probability=None)


def run(engine: Engine, asks: list[Ask], seed: int = 0) -> None:
    """Submits the asks at random moments and steps until all is done."""
    chance, left = random.Random(seed), list(asks)
    while left or not engine.idle:
        for _ in range(chance.choice([0, 0, 1, 3])):
            if left:
                engine.waiting.append(left.pop(0))
        for update in engine.step():
            update.ask.receive(update)


@pytest.mark.parametrize(("max_batch", "max_prefill_tokens"), [(1, 8192), (3, 8192), (8, 40), (64, 8192)])
def test_answers_are_those_of_the_library(student, max_batch, max_prefill_tokens):
    asks, updates = drawn_asks(student, 30, max_batch)
    run(Engine(student, max_batch, max_prefill_tokens), asks)
    finals = [updates[ask][-1] for ask in asks]
    assert [update.answer for update in finals] == [alone(student, ask) for ask in asks]
    assert all(len(updates[ask]) == 1 for ask in asks)
    assert all(update.finish_reason == ("length" if update.answer.truncated else "stop") for update in finals)
    assert len({update.answer.text for update in finals}) > 10


def test_streamed_pieces_are_the_answer(student):
    asks, updates = drawn_asks(student, 30, 5, stream=True)
    run(Engine(student, 8), asks)
    for ask in asks:
        assert "".join(update.text for update in updates[ask]) == updates[ask][-1].answer.text
    assert [updates[ask][-1].answer for ask in asks] == [alone(student, ask) for ask in asks]
    assert max(len(updates[ask]) for ask in asks) > 3


def test_stop_texts_cut_the_answer_and_end_its_work(student):
    asks, _ = drawn_asks(student, 40, 6)
    ask = max((ask for ask in asks if ask.limit == 12), key=lambda ask: len(alone(student, ask).text))
    whole = alone(student, ask).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for stream in (False, True):
        updates: list[Update] = []
        cut = Ask(
            ask.ids, ask.mode, ask.latent, 12, ask.sampling, updates.append, stop=("never", stop), stream=stream,
            zeroed=ask.zeroed,
        )  # fmt: skip
        run(Engine(student), [cut])
        answer = updates[-1].answer
        assert answer.text == whole[: whole.index(stop)].strip()
        assert updates[-1].finish_reason == "stop"
        assert answer.num_tokens <= 12
        assert "".join(update.text for update in updates) == (answer.text if stream else "")


def test_who_leaves_costs_nothing_and_changes_nothing(student):
    asks, updates = drawn_asks(student, 20, 7)
    engine = Engine(student, 6)
    engine.waiting.extend(asks)
    for update in engine.step():
        update.ask.receive(update)
    for ask in asks[::2]:
        ask.cancelled = True
    run(engine, [])
    assert all(updates[ask][-1].answer == alone(student, ask) for ask in asks[1::2])
    assert engine.idle
    assert not engine._state


def test_no_memory_ends_those_answers_only(student, monkeypatch):
    asks, updates = drawn_asks(student, 6, 8)
    engine = Engine(student, 6)
    monkeypatch.setattr(engine, "_join", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
    run(engine, asks[:3])
    monkeypatch.undo()
    run(engine, asks[3:])
    assert all("memory" in updates[ask][0].error for ask in asks[:3])
    assert all(updates[ask][-1].answer == alone(student, ask) for ask in asks[3:])


class Words:
    """A tokenizer whose token i is text i, and that takes the space before an apostrophe out, as some do."""

    clean_up_tokenization_spaces = True

    def __init__(self, *words: str):
        self.words = words

    def decode(self, tokens, skip_special_tokens):
        return "".join(self.words[token] for token in tokens).replace(" '", "'")


@pytest.mark.parametrize("stop", [(), ("cd",), ("b", "zz"), ("it's",), ("x y",)])
def test_held_back_until_it_is_certain(stop):
    words = Words("  a", " b", " it", " '", "s", " c", "d", "\N{REPLACEMENT CHARACTER}", " x ", "y", "\n", " ")
    text, tokens, sent = GrowingText(words, stop), [], ""
    whole = words.decode(range(len(words.words)), True)
    for token in range(len(words.words)):
        tokens.append(token)
        sent += text.more(tokens)
        if text.stopped is not None:
            break
    sent += text.rest(whole.strip() if text.stopped is None else text.stopped)
    ends = [whole.find(part) for part in stop if part in whole]
    assert sent == (whole[: min(ends)].strip() if ends else whole.strip())
